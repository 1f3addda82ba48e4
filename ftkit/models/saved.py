"""Write a result for use: what training changed for itself is put back as the base model has it."""

import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.models.sources.source import Source, load_tokenizer, own_config

if TYPE_CHECKING:
    import torch

    from ftkit.models.saving.write import Named

_CONFIGS = ("config.json", "generation_config.json")


def save_tokenizer(tokenizer: Any, source: Source, folder: Path) -> None:
    """Write the base model's tokenizer, with the pad token, the chat template and the padding of the run.

    A tokenizer that has been called keeps how it cut and padded, and would write that down; a fresh one has not.

    Args:
        tokenizer: the run's.
        source: where the base model is.
        folder: where to.
    """
    fresh = load_tokenizer(source)
    fresh.chat_template = tokenizer.chat_template
    if fresh.padding_side != tokenizer.padding_side:
        # What a tokenizer was not made with it does not save (PreTrainedTokenizerBase.save_pretrained).
        fresh.padding_side = fresh.init_kwargs["padding_side"] = tokenizer.padding_side
    fresh.save_pretrained(folder)


def restore_settings(source: Source, dtype: "torch.dtype", folder: Path) -> None:
    """Set what training changed in the configuration of a saved model back to what the base model came with.

    Args:
        source: where the base model is.
        dtype: what the weights were saved in.
        folder: of the saved model.
    """
    use_cache = getattr(own_config(source), "use_cache", None)
    for file in (folder / name for name in _CONFIGS):
        if file.is_file():
            fields = json.loads(file.read_text(encoding="utf-8"))
            fields.pop("use_cache", None)
            fields |= {} if use_cache is None else {"use_cache": use_cache}
            fields |= {"dtype": str(dtype).removeprefix("torch.")} if "dtype" in fields else {}
            file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    adapter = folder / "adapter_config.json"
    if adapter.is_file():  # PEFT forgets the revision, and knows a base model by whatever its configuration says
        fields = json.loads(adapter.read_text(encoding="utf-8"))
        fields |= {"base_model_name_or_path": source.name, "revision": source.revision}
        adapter.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def stored_dtype(source: Source) -> "torch.dtype | None":
    """Return what the weights of a model are stored in, None where nothing says so.

    Its configuration says it, or does not (those of 2019 have no such field); then its first matrix does.
    """
    import torch

    said = getattr(own_config(source), "dtype", None)
    return said if isinstance(said, torch.dtype) else _first_dtype(source)


def as_stored(weights: "Named", dtype: "torch.dtype") -> "Named":
    """Yield weights in the type that they are stored in; what is not a weight, such as a table of numbers, stays."""
    for name, one in weights:
        yield name, one.to(dtype) if one.is_floating_point() else one


def digest(tensor: "torch.Tensor", dtype: "torch.dtype") -> int:
    """Return a checksum of a tensor (CRC-32, some GB a second): whether two processes hold the same numbers.

    Args:
        tensor: on any device.
        dtype: what it is rounded to before, where it has floating-point numbers.
    """
    import torch

    one = tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
    return zlib.crc32(one.cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def of_other_types(folder: Path, dtype: "torch.dtype") -> list[str]:
    """Return the names of saved tensors whose numbers are of another floating type than they were to be saved in.

    Args:
        folder: of a saved model or adapter.
        dtype: what they were to be saved in.
    """
    from safetensors import safe_open

    from ftkit.models.sources.positions import DTYPES

    others = []
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            kinds = {name: DTYPES.get(file.get_slice(name).get_dtype(), dtype) for name in file.keys()}  # noqa: SIM118  # not a dictionary
        others += [name for name, kind in kinds.items() if kind.is_floating_point and kind != dtype]
    return others


def _first_dtype(source: Source) -> "torch.dtype | None":
    from safetensors import safe_open

    from ftkit.models.sources.positions import DTYPES
    from ftkit.models.sources.stored import weight_paths

    file = next(weight_paths(source), None)
    if file is None:
        return None
    with safe_open(file, "pt") as tensors:
        matrices = (part for part in map(tensors.get_slice, tensors.keys()) if len(part.get_shape()) > 1)
        dtypes = (DTYPES.get(matrix.get_dtype()) for matrix in matrices)
        return next((dtype for dtype in dtypes if dtype is not None and dtype.is_floating_point), None)
