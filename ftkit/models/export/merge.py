"""Merge an adapter into its base model, a module at a time, so that neither is ever in memory as a whole.

The model with its adapters is built over weights that take no memory. One module after another gets its weights from
the base model's files and is merged by PEFT itself, whatever kind of adapter stands beside it; its weights go out, and
the module is emptied again.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ftkit.config.methods import methods
from ftkit.config.recompute import Recompute
from ftkit.config.tree import RunConfig
from ftkit.errors import ModelError
from ftkit.models.build import build_bare_model, prepare_model
from ftkit.models.methods import method_of
from ftkit.models.methods.lora import unwrapped
from ftkit.models.partitions import own_tensors
from ftkit.models.saving.dtypes import Named
from ftkit.models.saving.settings import restore_settings
from ftkit.models.saving.whole import save_whole, write_as_in_files
from ftkit.models.saving.write import Kinds
from ftkit.models.sources.adapters import with_adapter
from ftkit.models.sources.source import Source
from ftkit.models.sources.start import Start
from ftkit.models.sources.stored import Stored, open_stored
from ftkit.models.sources.weights import grow_tables, load_weights
from ftkit.models.structure.heads import find_head


def write_merged(
    config: RunConfig,
    source: Source,
    architecture: Any,
    dtype: torch.dtype,
    folder: Path,
    note: Callable[[str], None],
) -> None:
    """Write a whole model as transformers loads it: an adapter is merged into its base, which is not quantized.

    Args:
        config: the run, settled.
        source: where the model is, or the base model of the adapter.
        architecture: what `load_config` returned.
        dtype: what the weights are written in; sums are taken in fp32.
        folder: where to.
        note: told where the model has to be held as a whole.

    Raises:
        ModelError: the weights are not whole, or the adapter is not of this base.
    """
    config = _merging(config, source)
    bare = build_bare_model(config, architecture, torch.float32)
    with torch.device("meta"):
        rows = grow_tables(bare, config.model)
    with open_stored(source, bare) as stored:
        lacking = stored.lacks(name for name, _ in bare.named_parameters())
        head = find_head(bare, lacking)
        if any(not name.startswith(tuple(f"{one}." for one in head)) for name in lacking):
            note("the files of the base model hold its weights in another form, so that it is loaded as a whole")
            _write_loaded(config, source, architecture, dtype, folder, note)
        else:
            kinds = _kinds(bare, stored, dtype)
            start = Start(head, rows, source.adapter)
            model = bare if source.adapter is None else _adapted(config, bare, start)
            merged = _as_kinds(merged_tensors(model, stored), kinds)
            write_as_in_files(build_bare_model(config, architecture, torch.float32), folder, merged, kinds)
            _write_settings(bare, source, folder)
    restore_settings(source, dtype, folder)


def _merging(config: RunConfig, source: Source) -> RunConfig:
    """Return the run as it is merged: plain LoRA with the adapter's settings, or a whole model."""
    model = config.model.model_copy(update={"lean": False, "recompute": Recompute(), "offload_activations": False})
    name = "full" if source.adapter is None else "lora"
    plain = config.model_copy(update={"model": model, "method": methods()[name]()})
    return plain if source.adapter is None else with_adapter(plain)


def _adapted(config: RunConfig, bare: nn.Module, start: Start) -> nn.Module:
    """Put the adapter beside weights that take no memory: PEFT moves an adapter to where its base is, so not on `meta`.

    The head is copied by PEFT and loaded into, for which it needs a memory of its own.
    """
    heads = tuple(f"{name}." for name in start.head)
    for name, parameter in list(bare.named_parameters()):
        shape = parameter.shape
        placeholder = torch.zeros(shape) if name.startswith(heads) else torch.zeros(()).expand(shape)
        owner, _, last = name.rpartition(".")
        bare.get_submodule(owner).register_parameter(last, nn.Parameter(placeholder, requires_grad=False))
    cast(Any, bare).tie_weights()
    return prepare_model(config, bare, torch.float32, start)


def _write_loaded(
    config: RunConfig,
    source: Source,
    architecture: Any,
    dtype: torch.dtype,
    folder: Path,
    note: Callable[[str], None],
) -> None:
    """Merge in memory, where the files cannot be read tensor by tensor."""
    model, start = load_weights(config, source, architecture, dtype, note)
    if source.adapter is not None:
        adapted = cast(Any, method_of(config).prepare(model, start, dtype))
        model = adapted.merge_and_unload(safe_merge=True)
    save_whole(model, folder, iter(own_tensors(model).items()), dtype)


def _kinds(bare: nn.Module, stored: Stored, dtype: torch.dtype) -> Kinds:
    """Return dtype and shape of all that is written, in the model's order; a tied weight has its first name alone."""
    buffers = ((name, stored.read(name)) for name, _ in bare.named_buffers() if name in stored)
    return {name: (dtype, tuple(one.shape)) for name, one in bare.named_parameters()} | {
        name: (dtype if one.is_floating_point() else one.dtype, tuple(one.shape)) for name, one in buffers
    }


def _as_kinds(tensors: Named, kinds: Kinds) -> Named:
    """Yield each tensor that is written once, in the type it is written in."""
    left = set(kinds)
    for name, tensor in tensors:
        if name in left:
            left.remove(name)
            yield name, tensor.to(kinds[name][0])


def _write_settings(model: nn.Module, source: Source, folder: Path) -> None:
    """Write the configuration, and how the base model generates where it says so."""
    from transformers import GenerationConfig

    config = cast(Any, model).config
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    with suppress(OSError):  # it has none
        GenerationConfig.from_pretrained(source.name, revision=source.revision or "main").save_pretrained(folder)


def merged_tensors(model: nn.Module, stored: Stored) -> Named:
    """Yield the weights of a model with its adapters merged into them.

    Args:
        model: a PEFT model whose adapters have their values, or a model without adapters; its own weights are not read.
        stored: the files of its base model.

    Yields:
        Parameters and buffers by the names that the base model has for them, those of a merged module in fp32, others
        as they are stored; tied ones once or more often.

    Raises:
        ModelError: an adapter holds numbers that are not finite.
    """
    yield from _below(unwrapped(model), "", stored)


def _below(module: nn.Module, path: str, stored: Stored) -> Named:
    """Yield the tensors of a module and of all below it."""
    if _is_adapted(module):
        yield from _merged(module, path, stored)
        return
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, _ in own:
        if f"{path}{name}" in stored:
            yield f"{path}{name}", stored.read(f"{path}{name}")
    for name, child in module.named_children():
        yield from _below(child, f"{path}{name}.", stored)


def _merged(module: nn.Module, path: str, stored: Stored) -> Named:
    """Yield the tensors of a module that PEFT has wrapped."""
    base = _base(module)
    for name, parameter in list(base.named_parameters()):
        if f"{path}{name}" in stored:
            owner, _, last = name.rpartition(".")
            whole = _grown(stored.read(f"{path}{name}").to(torch.float32), parameter.shape)
            base.get_submodule(owner).register_parameter(last, nn.Parameter(whole, requires_grad=False))
    try:
        with torch.no_grad():
            result = _merge(module.to(torch.float32))
    except ValueError as error:
        raise ModelError(f"{path.rstrip('.')}: {error}; train the adapter again, or take another checkpoint") from error
    for name, tensor in result.named_parameters():
        assert not tensor.is_meta, f"{path}{name}"  # a sum with what has no values has none either, and says nothing
        yield f"{path}{name}", tensor.detach()
    module.to("meta")


def _is_adapted(module: nn.Module) -> bool:
    """Return whether PEFT has wrapped a module (peft 0.21: tuners/tuners_utils.py, utils/other.py)."""
    return hasattr(module, "base_layer") or hasattr(module, "unload_and_optionally_merge_module")


def _base(module: nn.Module) -> nn.Module:
    """Return the module of the base model that PEFT has wrapped; for one that trains whole, what it trains."""
    wrapper = cast(Any, module)
    if hasattr(module, "token_adapter"):
        wrapper = wrapper.token_adapter
    elif hasattr(module, "modules_to_save"):
        return nn.Module()
    base: nn.Module = wrapper.get_base_layer()
    return base


def _merge(module: nn.Module) -> nn.Module:
    """Return what is left of a wrapped module when PEFT has merged it."""
    wrapper = cast(Any, module)
    if hasattr(module, "unload_and_optionally_merge_module"):
        whole: nn.Module = wrapper.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        return whole
    wrapper.merge(safe_merge=True)
    base: nn.Module = wrapper.get_base_layer()
    return base


def _grown(table: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Return a table of tokens with the rows that were added for the adapter, which brings what stands in them."""
    missing = shape[0] - table.shape[0] if table.dim() == len(shape) else 0
    return torch.cat([table, table.new_zeros((missing, *shape[1:]))]) if missing > 0 else table
