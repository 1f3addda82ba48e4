"""Which column is what: named by the configuration, or found by the names that people give to such columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ftkit.config.tree import DataConfig, Task
from ftkit.errors import DataError, nearest

Kind = Literal["labelled", "plain", "lines", "completion", "chat"]

TEXTS = (
    *("text", "sentence", "content", "review", "comment", "tweet", "document", "body", "utterance", "headline"),
    *("review_body", "review_text", "message", "query", "description", "input", "sms"),
)
LABELS = (
    "label",
    "labels",
    "category",
    "class",
    "sentiment",
    "target",
    "intent",
    "topic",
    "emotion",
    "stars",
    "rating",
)
PAIRS = (
    *(("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "answer"), ("question1", "question2")),
    *(("question", "sentence"), ("text1", "text2"), ("text_a", "text_b"), ("sentence_a", "sentence_b")),
)
COMPLETIONS = (
    *(("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response")),
    *(("question", "answer"), ("input", "output")),
)
MESSAGES = ("messages", "conversation", "conversations", "chat", "dialogue")


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads.

    Attributes:
        kind: `labelled` text, `plain` documents, `lines` of one text, prompt with `completion`, or `chat`.
        first: the column of texts, prompts or messages.
        second: the column of second texts or completions, or None.
        label: the column of labels, or None.
        group: the column that keeps rows together, or None.
    """

    kind: Kind
    first: str
    second: str | None = None
    label: str | None = None
    group: str | None = None

    @property
    def is_running(self) -> bool:
        """Texts are joined and cut into blocks."""
        return self.kind in ("plain", "lines")

    @property
    def roles(self) -> dict[str, str]:
        """Role to column, for the report."""
        first, second = {"completion": ("prompt", "completion"), "chat": ("messages", "")}.get(
            self.kind, ("text", "pair")
        )
        named = {first: self.first, second: self.second, "label": self.label, "group": self.group}
        return {role: name for role, name in named.items() if name is not None}


def choose_columns(config: DataConfig, task: Task, names: Sequence[str], group: str | None = None) -> Columns:
    """Choose the columns of a task.

    Args:
        config: names of columns, each None where it is to be found.
        task: what the columns are for.
        names: the columns that there are.
        group: the column that keeps rows together where the configuration names none.

    Returns:
        Columns that are all in `names`.

    Raises:
        DataError: a named column is not there, none is found, or several are.
    """
    for field in ("text_column", "text_pair_column", "label_column", "prompt_column", "completion_column"):
        _check_named(config, field, names)
    _check_named(config, "messages_column", names)
    _check_named(config, "group_column", names)
    group = config.group_column or group
    if task == "sequence-classification":
        return _labelled(config, names, group)
    return _causal(config, names, group)


def _check_named(config: DataConfig, field: str, names: Sequence[str]) -> None:
    given = getattr(config, field)
    if given is not None and given not in names:
        raise DataError(f"data.{field}={given!r} is no column of {config.dataset}; {nearest(given, names)}")


def _labelled(config: DataConfig, names: Sequence[str], group: str | None) -> Columns:
    label = config.label_column or _one(config, "label", "label_column", _found(names, LABELS), names)
    first, second = config.text_column, config.text_pair_column
    if first is None:
        if second is not None:
            raise DataError(
                f"data.text_pair_column={second!r} is named without its first text; name data.text_column too"
            )
        first, second = _find_text(config, names, (label, group))
    if len({first, second, label}) < 3:
        raise DataError(f"column {first!r} cannot be text and label (or pair) at once; name another; {_listed(names)}")
    return Columns("labelled", first, second, label, group)


def _find_text(config: DataConfig, names: Sequence[str], others: tuple[str | None, ...]) -> tuple[str, str | None]:
    """Find one text or one known pair; a text that is half of a found pair is no candidate of its own."""
    free = [name for name in names if name not in others]
    pairs = _found_pairs(free, PAIRS)
    taken = {name for pair in pairs for name in pair}
    texts: list[tuple[str, str | None]] = [(name, None) for name in _found(free, TEXTS) if name not in taken]
    found = [*pairs, *texts]
    if len(found) == 1:
        return found[0]
    raise _unclear(config, "text", "text_column", [" + ".join(filter(None, pair)) for pair in found], names)


def _causal(config: DataConfig, names: Sequence[str], group: str | None) -> Columns:
    named = _named_causal(config, group)
    if len(named) > 1:
        raise DataError(
            "data names columns for several kinds of text at once; name text_column, or prompt_column with "
            "completion_column, or messages_column"
        )
    found = named or _found_causal(names, group)
    if len(found) == 1:
        return found[0]
    raise _unclear(config, "text", "text_column", [" + ".join(column.roles.values()) for column in found], names)


def _named_causal(config: DataConfig, group: str | None) -> list[Columns]:
    prompt, completion = config.prompt_column, config.completion_column
    if (prompt is None) != (completion is None):
        given, wanted = ("prompt", "completion") if completion is None else ("completion", "prompt")
        raise DataError(f"data.{given}_column is named without data.{wanted}_column; name both, or text_column alone")
    found = [Columns("completion", prompt, completion, group=group)] if prompt is not None else []
    if config.text_column is not None:
        found.append(Columns("plain", config.text_column, group=group))
    if config.messages_column is not None:
        found.append(Columns("chat", config.messages_column, group=group))
    return found


def _found_causal(names: Sequence[str], group: str | None) -> list[Columns]:
    pairs = _found_pairs(names, COMPLETIONS)
    taken = {name for pair in pairs for name in pair}
    texts = [name for name in _found(names, TEXTS) if name not in taken]
    return [
        *(Columns("chat", name, group=group) for name in _found(names, MESSAGES)),
        *(Columns("completion", prompt, completion, group=group) for prompt, completion in pairs),
        *(Columns("plain", name, group=group) for name in texts),
    ]


def _found(names: Sequence[str], known: Sequence[str]) -> list[str]:
    return [name for name in names if name.strip().lower() in known]


def _found_pairs(names: Sequence[str], known: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    actual = {name.strip().lower(): name for name in names}
    return [(actual[first], actual[second]) for first, second in known if first in actual and second in actual]


def _one(config: DataConfig, what: str, field: str, found: list[str], names: Sequence[str]) -> str:
    if len(found) != 1:
        raise _unclear(config, what, field, found, names)
    return found[0]


def _unclear(config: DataConfig, what: str, field: str, found: list[str], names: Sequence[str]) -> DataError:
    problem = f"several could be the {what} column ({', '.join(found)})" if found else f"no {what} column is found"
    header = "; has the file a header line, and the separator that its suffix says?" if not found else ""
    return DataError(f"{config.dataset}: {problem}; name it with data.{field}; {_listed(names)}{header}")


def _listed(names: Sequence[str]) -> str:
    return "columns: " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
