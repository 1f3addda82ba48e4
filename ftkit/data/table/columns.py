"""Choose the columns: as the configuration names them, or by the names that people give to such columns."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ftkit.config.flags import as_flag
from ftkit.config.tree import DataConfig, Task
from ftkit.data.table.prompts import PromptTemplate, headed, joined
from ftkit.errors import DataError, NoLabelError, nearest

Kind = Literal["labelled", "plain", "lines", "completion", "chat"]

TEXTS = (
    *("text", "sentence", "content", "review", "comment", "tweet", "document", "body", "utterance", "headline"),
    *("review_body", "review_text", "message", "query", "description", "input", "sms"),
)
LABELS = (
    *("label", "labels", "category", "class", "sentiment", "target", "intent", "topic", "emotion", "stars", "rating"),
)
SCORES = ("score", "scores", "similarity", "similarity_score")
"""Numbers to predict, where no column of labels is found."""
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "answer"), ("question1", "question2")),
    *(("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b")),
)
COMPLETIONS = (("prompt", "completion"), ("prompt", "response"), ("input", "output"))
INSTRUCTIONS = (
    *(("instruction", "input", "output"), ("instruction", "input", "response"), ("instruction", "context", "response")),
    *(("context", "question", "answer"), ("instruction", "output"), ("instruction", "response")),
    *(("question", "response"), ("question", "answer")),
)
"""What is asked, in one column or two, and the answer."""
MESSAGES = ("messages", "conversation", "conversations", "chat", "dialogue")
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads.

    Attributes:
        kind: `labelled` text, `plain` documents, `lines` of one text, prompt with `completion`, or `chat`.
        first: the column of texts, prompts or messages.
        second: the column of second texts or completions (of a chat: of messages that answer), or None.
        label: the column of labels, or None.
        group: the column that keeps rows together, or None.
        several: the columns of 0 and 1 that `label` joins, or None.
        system: the column of system messages, or None.
        tools: the column of tools, or None.
        prompt: how several columns become the prompt; `first` then names them all.
        as_chat: prompt and completion are two turns of a chat.
        is_named: the configuration names the texts, so that a column of nothing but numbers is meant as text.
    """

    kind: Kind
    first: str
    second: str | None = None
    label: str | None = None
    group: str | None = None
    several: tuple[str, ...] | None = None
    system: str | None = None
    tools: str | None = None
    prompt: PromptTemplate | None = None
    as_chat: bool = False
    is_named: bool = False

    @property
    def is_running(self) -> bool:
        """Texts are joined and cut into blocks."""
        return self.kind in ("plain", "lines")

    @property
    def roles(self) -> dict[str, str]:
        """Role to column, for the report."""
        first, second = {"completion": ("prompt", "completion"), "chat": ("messages", "answers")}.get(
            self.kind, ("text", "pair")
        )
        named = {first: self.first, second: self.second, "label": self.label, "group": self.group}
        named |= {"system": self.system, "tools": self.tools}
        return {role: name for role, name in named.items() if name is not None}

    @property
    def used(self) -> set[str]:
        """The columns that are read."""
        first = {self.first} if self.prompt is None else set(self.prompt.columns)
        return first | set(self.several or ()) | {name for name in self.roles.values() if name != self.first}


def choose_columns(
    config: DataConfig,
    task: Task,
    names: Sequence[str],
    group: str | None = None,
    *,
    has_template: bool = False,
    nested: Collection[str] = (),
) -> Columns:
    """Choose the columns of a task.

    Args:
        config: names of columns, each None where it is to be found.
        task: what the columns are for.
        names: the columns that there are.
        group: the column that keeps rows together where the configuration names none.
        has_template: the tokenizer has a chat template, so that instructions can be written as a chat.
        nested: the columns that hold lists or objects, so that prompts and completions in them are messages.

    Returns:
        Columns that are all in `names`.

    Raises:
        DataError: a named column is not there, none is found, or several are.
    """
    for field in (field for field in type(config).model_fields if field.endswith(("_column", "label_columns"))):
        _check_named(config, field, names)
    group = config.group_column or group
    if task == "sequence-classification":
        return _labelled(config, names, group)
    columns = _causal(config, names, has_template=has_template)
    if columns.kind == "completion" and {columns.first, columns.second} <= set(nested):
        columns = replace(columns, kind="chat", as_chat=False)
    return _with_others(replace(columns, group=group), config, names)


def choose_texts(config: DataConfig, names: Sequence[str]) -> Columns:
    """Choose the columns of texts alone, for a model that answers them; raises as `choose_columns` does.

    Args:
        config: names them, or leaves them to be found.
        names: the columns that there are; a lone one is that of the texts.
    """
    for field in ("text_column", "text_pair_column"):
        _check_named(config, field, names)
    first, second = config.text_column, config.text_pair_column
    if first is None:
        labels = (config.label_column, *(config.label_columns or ()), *_found(names, LABELS))
        first, second = (names[0], None) if len(names) == 1 else _find_text(config, names, labels)
    return Columns("labelled", first, second, is_named=True)


def forgotten(columns: Columns, names: Sequence[str]) -> list[str]:
    """Return the columns that belong to a question of which another column is read.

    Args:
        columns: the chosen columns.
        names: the columns that there are.
    """
    whole = [found for found in _found_sets(names, INSTRUCTIONS) if columns.used & set(found)]
    return [name for found in whole for name in found if name not in columns.used] if columns.kind != "chat" else []


def _check_named(config: DataConfig, field: str, names: Sequence[str]) -> None:
    given = getattr(config, field)
    for name in given if isinstance(given, tuple) else (given,):
        if name is not None and name not in names:
            other = f"name one with {as_flag(f'data.{field}', 'NAME')}"  # also of data with other names than a run had
            raise DataError(
                f"data.{field}={name!r} is not a column of {config.dataset}; {other}; {nearest(name, names)}"
            )


def _labelled(config: DataConfig, names: Sequence[str], group: str | None) -> Columns:
    several = config.label_columns
    label = " + ".join(several) if several else config.label_column or _find_label(config, names)
    first, second = config.text_column, config.text_pair_column
    if first is None:
        if second is not None:
            raise DataError(
                f"data.text_pair_column={second!r} is named without its first text; name that with --text-column"
            )
        first, second = _find_text(config, names, (label, group, *(several or ())))
    if len({first, second, label}) < 3 or {first, second} & set(several or ()):
        raise DataError(f"column {first!r} cannot be text and label (or pair) at once; name another; {_listed(names)}")
    return Columns("labelled", first, second, label, group, several, is_named=config.text_column is not None)


def _find_label(config: DataConfig, names: Sequence[str]) -> str:
    """Find the column of labels; a column of scores only where no other is there."""
    found = _found(names, LABELS) or _found(names, SCORES)
    return _one(config, "label", "--label-column", found, names)


def _find_text(config: DataConfig, names: Sequence[str], others: tuple[str | None, ...]) -> tuple[str, str | None]:
    """Find one text or one known pair; a text that is half of a found pair is not a candidate of its own."""
    free = [name for name in names if name not in others]
    pairs = _found_pairs(free, PAIRS)
    taken = {name for pair in pairs for name in pair}
    texts: list[tuple[str, str | None]] = [(name, None) for name in _found(free, TEXTS) if name not in taken]
    found = [*pairs, *texts]
    if len(found) == 1:
        return found[0]
    raise _unclear(config, "text", "--text-column", [" + ".join(filter(None, pair)) for pair in found], names)


def _causal(config: DataConfig, names: Sequence[str], *, has_template: bool) -> Columns:
    named = _named_causal(config, names)
    if len(named) > 1:
        raise DataError(
            "data names columns for several kinds of text at once; name text_column, or prompt_column with "
            "completion_column, or messages_column"
        )
    found = named or _found_causal(config, names, has_template=has_template)
    if len(found) != 1:
        flags = "--set data.messages_column=NAME, with --prompt-column and --completion-column, or with --text-column"
        raise _unclear(config, "text", flags, [" + ".join(one.roles.values()) for one in found], names)
    return found[0]


def _with_others(columns: Columns, config: DataConfig, names: Sequence[str]) -> Columns:
    """Add the columns of system messages and tools, which only a chat has a place for."""
    if columns.kind == "chat" or columns.as_chat:
        system, tools = (
            given or next(iter(_found(names, known)), None)
            for given, known in ((config.system_column, SYSTEMS), (config.tools_column, TOOLS))
        )
        return replace(columns, system=system, tools=tools)
    for field in ("system_column", "tools_column"):
        if getattr(config, field) is not None:
            raise DataError(
                f"data.{field} is named, but only a chat has a place for it; name the chats with "
                "--set data.messages_column=NAME, or write prompts as a chat with --set data.prompt_format=chat"
            )
    return columns


def _named_causal(config: DataConfig, names: Sequence[str]) -> list[Columns]:
    found = _named_completion(config, names)
    if config.text_column is not None:
        found.append(Columns("plain", config.text_column, is_named=True))
    if config.messages_column is not None:
        found.append(Columns("chat", config.messages_column))
    return found


def _named_completion(config: DataConfig, names: Sequence[str]) -> list[Columns]:
    prompt, completion, as_chat = config.prompt_column, config.completion_column, config.prompt_format == "chat"
    if config.prompt_template is not None and prompt is not None:
        raise DataError("data.prompt_column and data.prompt_template both say what the prompt is; give one of them")
    if (prompt or config.prompt_template) is None and completion is None:
        return []
    if completion is None and config.prompt_template is not None:
        answers = [pair[-1] for pair in (*INSTRUCTIONS, *COMPLETIONS)]
        completion = _one(config, "completion", "--completion-column", _found(names, answers), names)
    if completion is None or (prompt or config.prompt_template) is None:
        given, wanted = ("prompt", "completion") if completion is None else ("completion", "prompt")
        raise DataError(f"data.{given}_column is named without data.{wanted}_column; name both, or text_column alone")
    if config.prompt_template is None:
        return [Columns("completion", prompt or "", completion, as_chat=as_chat)]
    return [_templated(PromptTemplate.parse(config.prompt_template, names), completion, as_chat=as_chat)]


def _templated(template: PromptTemplate, completion: str, *, as_chat: bool) -> Columns:
    return Columns("completion", " + ".join(template.columns), completion, prompt=template, as_chat=as_chat)


def _found_causal(config: DataConfig, names: Sequence[str], *, has_template: bool) -> list[Columns]:
    chats = [Columns("chat", name) for name in _found(names, MESSAGES)]
    instructions = _found_sets(names, INSTRUCTIONS)
    as_chat = config.prompt_format == "chat" or (config.prompt_format == "auto" and has_template)
    asked = [_instruction(found, names, as_chat=as_chat) for found in instructions]
    taken = {name for found in instructions for name in found}
    pairs = _found_pairs([name for name in names if name not in taken], COMPLETIONS)
    taken |= {name for pair in pairs for name in pair}
    is_chat = config.prompt_format == "chat"
    completions = [Columns("completion", prompt, completion, as_chat=is_chat) for prompt, completion in pairs]
    texts = [Columns("plain", name) for name in _found(names, TEXTS) if name not in taken]
    return [*chats, *asked, *completions, *texts]


def _instruction(found: tuple[str, ...], names: Sequence[str], *, as_chat: bool) -> Columns:
    """Return the columns of instructions: a chat's turn of paragraphs, or paragraphs below headings."""
    *asked, answer = found
    if as_chat:
        return _templated(PromptTemplate.parse(joined(asked), names), answer, as_chat=True)
    asked = [*_found(names, SYSTEMS), *asked]
    return _templated(PromptTemplate.parse(headed(asked, answer), names), answer, as_chat=False)


def _found(names: Sequence[str], known: Sequence[str]) -> list[str]:
    return [name for name in names if name.strip().lower() in known]


def _found_pairs(names: Sequence[str], known: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(pair[0], pair[1]) for pair in _found_sets(names, known)]


def _found_sets(names: Sequence[str], known: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the known sets of columns that are all there, without those that are part of a larger one."""
    actual = {name.strip().lower(): name for name in names}
    found = [wanted for wanted in known if all(name in actual for name in wanted)]
    whole = [wanted for wanted in found if not any(set(wanted) < set(other) for other in found)]
    return [tuple(actual[name] for name in wanted) for wanted in whole]


def _one(config: DataConfig, what: str, flag: str, found: list[str], names: Sequence[str]) -> str:
    if len(found) != 1:
        raise _unclear(config, what, flag, found, names)
    return found[0]


def _unclear(config: DataConfig, what: str, flags: str, found: list[str], names: Sequence[str]) -> DataError:
    problem = f"several could be the {what} column ({', '.join(found)})" if found else f"no {what} column is found"
    return (NoLabelError if what == "label" else DataError)(
        f"{config.dataset}: {problem}; name it with {flags}; {_listed(names)}{_doubt(config, found, names)}"
    )


def _doubt(config: DataConfig, found: list[str], names: Sequence[str]) -> str:
    """Return what else could be wrong with a file none of whose columns is known."""
    if {"chosen", "rejected"} <= {name.strip().lower() for name in names}:
        return f"; pairs of preferences are not trained; {_preferred(names)} trains on the preferred answers"
    if found or not any(kind in config.dataset.lower() for kind in (".csv", ".tsv", ".tab", ".xlsx")):
        return ""
    if len(names) == 1 and ".xlsx" not in config.dataset.lower():
        return "; if it has several, name the separator between them with --set data.separator=..."
    return "; the file must begin with a header line that names its columns"


def _preferred(names: Sequence[str]) -> str:
    """Return the flags that train on the preferred answers of pairs: to prompts, or whole conversations."""
    chosen, asked = _found(names, ("chosen",))[0], _found(names, ("prompt", "question", "instruction", "input"))
    columns = f"--prompt-column {asked[0]} --completion-column {chosen}"
    return f"--task causal-lm {columns if asked else f'--set data.messages_column={chosen}'}"


def _listed(names: Sequence[str]) -> str:
    return "columns: " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
