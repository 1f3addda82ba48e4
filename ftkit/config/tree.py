"""The configuration of a run: one frozen tree of sections. Choices are types, derived numbers are properties.

The defaults live in its sections and nowhere else: here, in `cache`, `engine` and `training`, and those of a method in
the method's own file. `files` fills the tree from YAML and flags.
"""

from datetime import date
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from ftkit.config import rules
from ftkit.config.cache import CacheConfig
from ftkit.config.engine import EngineConfig
from ftkit.config.methods import AnyMethod, default_method
from ftkit.config.output import OutputConfig
from ftkit.config.precision import Precision
from ftkit.config.recompute import Recompute, with_share
from ftkit.config.section import Name, Section
from ftkit.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig

Task = Literal["sequence-classification", "causal-lm"]
PromptFormat = Literal["auto", "plain", "chat"]
LossOn = Literal["answers", "last_answer", "everything"]
LabelKind = Literal["single", "multi", "regression"]
"""One class of a text, any number of its labels, or a number."""

CUTS = ("micro_batch_size", "micro_batch_tokens")
"""The two ways to cut a global batch, of which a run has one."""
SPLITS = ("train", "validation", "test")
"""The names of the splits, in their order."""
DEMO = "demo"
"""The name of the embedded default, as a model and as a dataset."""


class ModelConfig(Section):
    """The model, and how it computes."""

    name: Name = DEMO
    """Hub name, local folder, or `demo` for the embedded MiniLM."""
    revision: Name | None = None
    """Branch, tag or commit on the hub."""
    gguf_file: Name | None = None
    """The GGUF file inside the folder or repository, where the weights are one."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""
    new_head: bool = False
    """Draw the head of a trained classifier anew, for other classes than those that it was trained for."""
    resize_embeddings: bool | Annotated[int, Field(ge=1)] = False
    """Let the tables of tokens grow to the tokenizer's size, or to a number of rows; new rows train and are saved."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """The attention implementation of transformers."""
    precision: Precision = "auto"
    """What weights and activations compute in; masters, moments and gradient sums are fp32 in all of them."""
    padding: Literal["auto", "right", "left", "none"] = "auto"
    """Where shorter sequences of a micro-batch are filled up. `auto`: a check at the start finds the side that changes
    no logit, and takes sequences one at a time (`none`) where each does."""
    lean: bool = True
    """Compute the step in forms that are equal up to rounding and cost less, where they cover the model: a language
    model's loss without whole logits, LoRA layers that keep their input alone, on a CPU dropout by seed (other draws of
    the same rate). false: transformers, PEFT and torch as they come."""
    recompute: Recompute = Recompute()
    """The level at which layers compute again in the backward pass what they have not kept: `none` keeps all; `cheap`
    keeps matrix products and attention, and computes norms, activation functions, casts and dropout again; `layer`
    keeps a layer's input alone. Shares of the layers mix them: `{cheap: 0.5, layer: 0.5}`."""
    offload_activations: bool = False
    """CUDA: what a layer keeps for its backward (its input alone where it recomputes whole) waits in pinned memory of
    the host, and comes back one layer ahead of the backward; exact."""
    mlp_tile_tokens: int | None = Field(default=None, ge=1)
    """The MLP of each layer runs over so many tokens at a time, and again in the backward, so that its wide hidden
    states never exist for a whole long text; not named: over all of them."""

    @model_validator(mode="before")
    @classmethod
    def _old_name(cls, values: Any) -> Any:
        return with_share(values)


class DataConfig(Section):
    """The texts: their source, columns, splits and labels."""

    dataset: Name = DEMO
    """Hub name, file, folder, or `demo` for the embedded movie reviews."""
    subset: Name | None = None
    """The configuration of a hub dataset, such as `sst2` of `glue`; the sheet of an Excel workbook; `all` of the
    demo's reviews."""
    encoding: str = "utf-8"
    """The encoding of text files (CSV, TSV, JSON, JSONL, txt), such as `cp1252` for files of Windows and Excel."""
    separator: str | None = None
    """CSV, TSV: the character between columns, such as `;` or `tab`; recognised when not named."""
    quotes: Literal["auto", "doubled", "backslash", "none"] = "auto"
    """CSV, TSV: how a double quote inside a quoted text is written, twice or behind a backslash; `none`: quotes are
    plain characters. `auto` reads those written twice, and refuses a file that could be meant in another way."""
    train_split: Name = "train"
    """The split that trains."""
    validation_split: Name | None = None
    """The split that validates; found, or made from the training split, when not named."""
    test_split: Name | None = None
    """The split of the final scores; found, or made from the training split, when not named."""
    validation_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The share of the training split that validates where there is no such split."""
    test_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """The share of the training split that tests where there is no such split."""
    split_seed: int | None = Field(default=None, ge=0)
    """The seed of the splits that are made and of the rows that are drawn; `training.seed` when not named. Runs that
    share it are trained and scored on the same rows, whatever else their seeds decide."""
    text_column: Name | None = None
    """The column of texts, found when not named."""
    text_pair_column: Name | None = None
    """The column of second texts, for tasks on pairs."""
    label_column: Name | None = None
    """The column of labels, found when not named."""
    label_kind: LabelKind | Literal["auto"] = "auto"
    """What a label is: `single`, one class of a text; `multi`, any number of labels; `regression`, a number. `auto`:
    lists are several labels, numbers with decimals are numbers to predict, all else is one class; the report says."""
    label_columns: tuple[Name, ...] | None = None
    """Several labels as columns of 0 and 1, one column for each label."""
    label_separator: str | None = Field(default=None, min_length=1)
    """What stands between several labels in one text, such as `;`; without it a text is one label."""
    unlabelled: Literal["refuse", "drop", "no_label"] = "refuse"
    """What happens to a row whose label is empty or -1: it is refused, left out and counted, or, where a text has
    several labels, taken as one that has none of them."""
    standardize_targets: bool = False
    """regression: train on (number - mean) / deviation of the training split; scores stay in the data's units."""
    prompt_column: Name | None = None
    """causal-lm: the column of prompts, which carry no loss."""
    completion_column: Name | None = None
    """causal-lm: the column of completions, which carry the loss."""
    messages_column: Name | None = None
    """causal-lm: the column of chat messages; the loss is on the assistant's turns."""
    system_column: Name | None = None
    """causal-lm: the column of system messages that begin a chat, found when not named."""
    tools_column: Name | None = None
    """causal-lm: the column of the tools that a chat may call, found when not named."""
    prompt_template: str | None = Field(default=None, min_length=1)
    """causal-lm: the prompt as a text with columns in braces, such as `{instruction}` and `{input}`; a paragraph whose
    columns are all empty is left out of that row."""
    prompt_format: PromptFormat = "auto"
    """causal-lm: prompt and completion as they are (`plain`) or as a chat of two turns (`chat`); `auto` makes a chat of
    instructions that ftkit finds by itself, where the tokenizer has a chat template."""
    chat_template: Name | None = None
    """causal-lm: a file with a Jinja chat template, in the place of the tokenizer's own; it is saved with the model."""
    chat_date: date = date(2024, 7, 26)
    """causal-lm: the date for chat templates that write today's, so that the data is the same tomorrow."""
    loss_on: LossOn = "answers"
    """causal-lm: what carries the loss: completions and the assistant's turns, a chat's last answer alone, or all."""
    template_omissions: Literal["refuse", "allow"] = "refuse"
    """causal-lm: whether a chat template may leave out what a message says."""
    special_tokens_in_text: Literal["characters", "tokens"] = "characters"
    """What a special token that a text spells out, such as `</s>`, becomes: plain characters, or that token."""
    group_column: Name | None = None
    """Rows that share this column's value never fall into different splits."""
    label_names: tuple[str, ...] | None = None
    """The names of the labels in the order of their numbers, where labels are integers."""
    max_length: int = Field(default=128, ge=2)
    """Tokens after which a text is cut; the block length of plain text for causal-lm."""
    long_texts: Literal["cut", "windows"] = "cut"
    """Classification: what becomes of a text that is longer than `max_length`. `windows`: all of it is read, in windows
    of that length, whose logits are averaged."""
    max_train_samples: int | None = Field(default=None, ge=1)
    """At most this many training sequences, drawn by the seed."""
    max_eval_samples: int | None = Field(default=None, ge=1)
    """At most this many sequences in validation and in test."""
    near_duplicate_similarity: float | None = Field(default=0.8, ge=0.5, le=1.0)
    """The share of their pairs of neighbouring words from which two texts are told as nearly the same, above all where
    two splits have one each; null: nothing is told of them."""
    near_duplicates: Literal["keep", "drop"] = "keep"
    """What becomes of a row whose text is nearly that of an earlier one, where splits are made: it stays, and is told,
    or is left out first and counted, so that no two splits share it."""

    @model_validator(mode="after")
    def _has_similarity(self) -> Self:
        if self.near_duplicates == "drop" and self.near_duplicate_similarity is None:
            raise ValueError("near_duplicates=drop needs a near_duplicate_similarity of 0.5 to 1, and that is null")
        return self

    @field_validator("encoding")
    @classmethod
    def _is_encoding(cls, name: str) -> str:
        try:
            "".encode(name)
        except LookupError:
            raise ValueError("not an encoding; try utf-8, cp1252, latin-1 or utf-16") from None
        return name

    @field_validator("separator")
    @classmethod
    def _is_separator(cls, text: str | None) -> str | None:
        text = "\t" if text in ("tab", "\\t") else text
        if text is not None and (len(text) != 1 or not text.isascii() or text in '"\\\r\n\0'):
            raise ValueError("not a separator; give one character, such as ; or the word tab")
        return text


class BatchConfig(Section):
    """The global batch, and how it is cut; the cut never changes the mathematics."""

    global_batch_size: int = Field(default=32, ge=1)
    """Sequences in one optimizer step over all ranks."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences in one forward on one rank."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """Padded tokens in one forward on one rank; when neither cut is named 512 on a CPU, 1024 there for qlora and full,
    2048 there in bf16, 4096 elsewhere, or fewer where those do not fit. `auto`: the planner chooses the fastest that
    fits this machine, and the result has the number."""

    default_micro_batch_tokens: ClassVar[int] = 4096
    half_cpu_micro_batch_tokens: ClassVar[int] = 2048
    """On a CPU in half precision: where the processor multiplies bf16, products take a fraction of their time in fp32,
    and what a micro-batch costs whatever it holds weighs more; so does a kernel that oneDNN compiles for each new shape
    (1 to 6 ms on a Xeon with AMX). 512 tokens take 1.1 to 1.3 times as long (docs/performance.md)."""

    @model_validator(mode="after")
    def _one_cut(self) -> Self:
        rules.check(rules.Facts(cuts=tuple(key for key in CUTS if getattr(self, key) is not None)))
        return self

    @property
    def is_named(self) -> bool:
        """Whether the cut is named, if only as `auto`."""
        return self.micro_batch_size is not None or self.micro_batch_tokens is not None

    def one_at_a_time(self) -> "BatchConfig":
        """Return the cut in which nothing is padded, since each sequence is a micro-batch of its own."""
        return self.model_copy(update={"micro_batch_size": 1, "micro_batch_tokens": None})

    @property
    def token_limit(self) -> int | None:
        """Padded tokens of one micro-batch, None where sequences are counted; the default until `auto` is settled."""
        if self.micro_batch_size is not None:
            return None
        chosen = self.micro_batch_tokens
        return chosen if isinstance(chosen, int) else self.default_micro_batch_tokens


class RunConfig(Section):
    """A whole run."""

    task: Task = "sequence-classification"
    """What the model is trained for."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    method: AnyMethod = Field(default_factory=default_method)
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    engine: EngineConfig = EngineConfig()
    training: TrainingConfig = TrainingConfig()
    cache: CacheConfig = CacheConfig()
    output: OutputConfig = OutputConfig()

    @property
    def data_seed(self) -> int:
        """The seed of splits and draws."""
        return self.training.seed if self.data.split_seed is None else self.data.split_seed

    @property
    def learning_rate(self) -> float:
        """The peak learning rate: the optimizer's, else the method's own default."""
        return self.optimizer.learning_rate or self.method.default_learning_rate

    def default_cut(self, device_type: str) -> int:
        """Return the padded tokens of a micro-batch where none are named.

        Args:
            device_type: what it runs on; on a CPU small micro-batches are as quick as large ones in fp32.
        """
        if device_type != "cpu":
            return self.batch.default_micro_batch_tokens
        is_half = self.model.precision in ("bf16", "fp16")
        return self.batch.half_cpu_micro_batch_tokens if is_half else self.method.cpu_micro_batch_tokens

    def without_cache(self) -> Self:
        """Return the run whose frozen layers run in each step."""
        return self.model_copy(update={"cache": self.cache.model_copy(update={"trunk": "off"})})

    def settled(self, device_type: str) -> Self:
        """Return the run with the numbers that stand behind its defaults: the learning rate and the cut.

        A cut that the planner is to choose becomes `auto`.

        Args:
            device_type: what it runs on, which decides the cut.
        """
        batch = self.batch
        if not batch.is_named:
            cut = "auto" if self.engine.fit else self.default_cut(device_type)
            batch = batch.model_copy(update={"micro_batch_tokens": cut})
        optimizer = self.optimizer.model_copy(update={"learning_rate": self.learning_rate})
        return self.model_copy(update={"batch": batch, "optimizer": optimizer})
