"""Models in GGUF, dequantized once into a folder of safetensors, which loads in a second.

transformers takes half a minute to load even a small GGUF file, takes the model for a quantized one, and cannot save
it. So the first run converts it into the cache (`ftkit.machine.disk.cache_folder`), and all others load it from there.
"""

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ftkit.errors import DependencyError, ModelError
from ftkit.machine.disk import CACHE_VARIABLE, cache_folder, written_aside
from ftkit.machine.lock import locked
from ftkit.models.sources.source import Source, explained_loading, load_tokenizer

_VERSION = 1
"""Of what is made of a file; another one is made anew."""
_ELSEWHERE = f"set {CACHE_VARIABLE} to a folder on another disk"
_WHOLE = {"F32": torch.float32, "F16": torch.float16}
"""Matrices that are not quantized keep their type; what is dequantized has fewer digits than bf16 holds."""


def as_safetensors(source: Source, note: Callable[[str], None]) -> Source:
    """Return a source of safetensors: the same one, or the folder that its GGUF file has been converted to.

    Processes that ask at once convert once: the others wait.

    Args:
        source: where a model is.
        note: told what takes so long.

    Returns:
        A source without a GGUF file.

    Raises:
        ModelError: the file is damaged or of an architecture that transformers cannot read.
        DependencyError: the package gguf is missing.
        DeviceError: the cache cannot be written.
    """
    if source.gguf_file is None:
        return source
    file = _file(source)
    target = _target(file)
    if not target.is_dir():

        def waiting(owner: str) -> None:
            note(f"{owner} converts this model; waiting for it")

        with locked(target, waiting, _ELSEWHERE):
            if not target.is_dir():
                note(f"converting {file.name} to safetensors, once, in {target}")
                with written_aside(target, _ELSEWHERE) as aside:
                    _convert(source, file, aside)
    return Source(str(target))


def if_converted(source: Source) -> Source:
    """Return the folder that a GGUF file has been converted to where there is one, else the source as it is."""
    if source.gguf_file is None:
        return source
    target = _target(_file(source))
    return Source(str(target)) if target.is_dir() else source


def _file(source: Source) -> Path:
    from transformers.utils.hub import cached_file

    assert source.gguf_file is not None
    with explained_loading(source, source.gguf_file):
        return Path(str(cached_file(source.name, source.gguf_file, revision=source.revision)))


def _target(file: Path) -> Path:
    """Return the place of a file's conversion, which its content decides, whatever its name."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return cache_folder() / "gguf" / f"{digest[:32]}-{_VERSION}"


def _convert(source: Source, file: Path, folder: Path) -> None:
    """Write weights, configuration and tokenizer of a GGUF file as transformers would have saved them."""
    from transformers import AutoModelForCausalLM, GgufConfig

    dtype = _matrix_dtype(file)
    with explained_loading(source, source.gguf_file or ""), _hushed():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.name,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **source.arguments,
        )
        tokenizer = load_tokenizer(source)
    packed, info = loaded
    drawn = sorted({*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])})
    if drawn:
        raise ModelError(
            f"transformers does not read {file.name} as it was written: {drawn[0]} and {len(drawn) - 1} more tensors "
            "would be drawn at random; give the model as safetensors"
        )
    model = _unquantized(packed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made = {"file": file.name, "dtype": str(dtype), "transformers": metadata.version("transformers")}
    (folder / "converted.json").write_text(json.dumps(made, indent=2), encoding="utf-8")


def _matrix_dtype(file: Path) -> torch.dtype:
    """Return what the matrices of a file are kept in."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise DependencyError(f"{file.name} needs the package gguf: pip install 'ftkit[gguf]'") from None
    try:
        kinds = {tensor.tensor_type.name for tensor in GGUFReader(file).tensors if len(tensor.shape) > 1}
    except (ValueError, IndexError, KeyError, UnicodeDecodeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{file} is truncated or damaged ({reason}); copy or download it again") from None
    return _WHOLE.get(kinds.pop(), torch.bfloat16) if len(kinds) == 1 else torch.bfloat16


def _unquantized(packed: Any) -> Any:
    """Move dequantized weights into a fresh model: the one that was loaded believes that it is quantized."""
    config = packed.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = type(packed)(config).to(packed.dtype)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    return model


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep transformers' two progress bars, which it draws whatever its verbosity."""
    with contextlib.nullcontext() if os.environ.get("FTKIT_VERBOSE") else contextlib.redirect_stderr(io.StringIO()):
        yield
