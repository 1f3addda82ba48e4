"""Write a model as ONNX, by torch's own exporter, and ask such a file."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ftkit.config.tree import RunConfig
from ftkit.errors import DependencyError, ModelError
from ftkit.models.sources.source import Source, explained_loading
from ftkit.models.sources.weights import auto_class

FILE = "model.onnx"
_EXAMPLE = (2, 16)
"""Sequences and tokens of the input that is traced; both are free in the file."""
_MISSING = "writing ONNX needs the packages onnx and onnxscript: pip install 'ftkit[onnx]'"


class _Logits(nn.Module):
    """A model whose only inputs are tokens and mask, and whose only output are the logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits: [B, C] of a classifier, [B, T, V] of a language model."""
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
        return logits


def write_onnx(config: RunConfig, source: Source, dtype: torch.dtype, folder: Path) -> None:
    """Write a model as `model.onnx`: tokens and mask in, logits out, any number of sequences of any length.

    Args:
        config: the run; its task chooses the head.
        source: the folder of a whole model.
        dtype: of the weights.
        folder: where to.

    Raises:
        DependencyError: onnx or onnxscript is missing.
        ModelError: the model's code is not one that torch can export.
    """
    try:
        import onnx  # noqa: F401  # torch looks for both when it has already traced
        import onnxscript  # noqa: F401
    except ImportError:
        raise DependencyError(_MISSING) from None
    with explained_loading(source, "weights"):
        model: nn.Module = auto_class(config.task).from_pretrained(
            source.name, dtype=dtype, attn_implementation="sdpa", use_safetensors=True
        )
    # Two tensors: one and the same would be one input of what is traced.
    tokens, mask = torch.ones(_EXAMPLE, dtype=torch.int64), torch.ones(_EXAMPLE, dtype=torch.int64)
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _hushed():
            program: Any = torch.onnx.export(
                _Logits(model.eval()),
                (tokens, mask),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_shapes={"input_ids": free, "attention_mask": free},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"torch cannot export {type(model).__name__} as ONNX: {reason}; take --to merged") from error
    program.save(folder / FILE)


def onnx_logits(file: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits that a file gives, in fp32.

    Args:
        file: what `write_onnx` wrote.
        tokens: [B, T] int64, no padding among them.

    Raises:
        DependencyError: onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError:
        raise DependencyError("asking an ONNX file needs onnxruntime: pip install onnxruntime") from None
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    inputs = {"input_ids": tokens.cpu().numpy(), "attention_mask": torch.ones_like(tokens).cpu().numpy()}
    return torch.as_tensor(session.run(["logits"], inputs)[0]).float()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep what torch's exporter prints of each of its stages, and what it warns of that is not the user's."""
    with contextlib.ExitStack() as stack:
        if not os.environ.get("FTKIT_VERBOSE"):
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            logger = logging.getLogger("torch.onnx")
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield
