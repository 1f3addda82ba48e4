"""From a source to a module that is ready to train: load or build empty, quantize, adapt, checkpoint activations."""

import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn

from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, ModelError
from ftkit.machine.process import ProcessContext
from ftkit.models import foreign
from ftkit.models.activations import offload
from ftkit.models.activations.recompute import set_recompute
from ftkit.models.experts import expert_parameters
from ftkit.models.kernels.chunked_loss import chunk_loss
from ftkit.models.kernels.dropout import seed_dropouts
from ftkit.models.kernels.first_place import pool_early
from ftkit.models.kernels.grouped_heads import make_grouped
from ftkit.models.kernels.lora_linear import make_lean
from ftkit.models.kernels.rms_norm import lean_norms
from ftkit.models.kernels.seeded_attention import NAME as SEEDED_ATTENTION
from ftkit.models.kernels.seeded_attention import seed_attention
from ftkit.models.kernels.short_attention import shorten
from ftkit.models.kernels.tiled_mlp import tile_mlps
from ftkit.models.kernels.unpadded import unpad
from ftkit.models.methods import method_of
from ftkit.models.methods.lora import is_adapted, unwrapped
from ftkit.models.partitions import whole_numel
from ftkit.models.sources.source import Source
from ftkit.models.sources.start import Start
from ftkit.models.sources.weights import Note, attention, auto_class, grow_tables, load_weights
from ftkit.models.streaming.layout import layout_of, leave_out, names_to_stream
from ftkit.models.streaming.sources import NoLayers, in_ram, on_disk
from ftkit.models.streaming.stored import StoredWeights, open_weights
from ftkit.models.streaming.stream import attach
from ftkit.models.streaming.table import NoTable, left_out_table
from ftkit.models.structure.heads import find_head
from ftkit.models.structure.layers import first_trained_layer, transformer_layers

_ALONE = ProcessContext()
_LISTED = 3
"""Kinds of weights that stay whole and are named, the largest ones."""
_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
"""As transformers' models call the embedding of absolute positions (BERT and kin, OPT and BART, GPT-2)."""


def build_model(  # noqa: PLR0913  # what a model is made of, and who shares its memory
    config: RunConfig,
    source: Source,
    architecture: Any,
    dtype: torch.dtype,
    note: Note = lambda _: None,
    without: Collection[str] = (),
    process: ProcessContext = _ALONE,
) -> nn.Module:
    """Load the weights and make of them what the method trains.

    Args:
        config: the run.
        source: where the weights are.
        architecture: what `load_config` returned.
        dtype: what weights and activations compute in.
        note: told what is new in the model.
        without: modules whose weights stay on `meta`, by their names before the method changes the model.
        process: the place of this process; the ranks of a host share what streams from its memory, so all of them call
            this.

    Returns:
        A module on the CPU, in evaluation mode, in which exactly what the method trains requires gradients.

    Raises:
        ModelError: the weights cannot be loaded or are not whole, or the model is not for this task or method.
    """
    streams = config.engine.stream_layers != "none"
    left = _left_out(config, build_bare_model(config, architecture, dtype)) if streams else []
    model, start = load_weights(config, source, architecture, dtype, note, (*without, *left))
    stored = None
    if streams:
        leave_out(model, left)
        stored = open_weights(source, model)
    model = prepare_model(config, model, dtype, start)
    if stored is not None:
        _stream(config, model, stored, process, note)
    for line in weight_lines(model):
        note(line)
    return model


def build_empty_model(config: RunConfig, architecture: Any, dtype: torch.dtype) -> nn.Module:
    """Build the same module without weights, on `meta`.

    Args:
        config: the run.
        architecture: what `load_config` returned, or any transformers configuration.
        dtype: what weights and activations compute in.

    Returns:
        A module on `meta` with the names, shapes and dtypes of the real one.

    Raises:
        ModelError: there is no such model for the task, or the method does not fit it.
    """
    model = build_bare_model(config, architecture, dtype)
    streams = config.engine.stream_layers != "none"
    if streams:
        leave_out(model, _left_out(config, model))
    with torch.device("meta"):
        start = Start(head=find_head(model, ()), rows=grow_tables(model, config.model))
        model = prepare_model(config, model, dtype, start)
    if streams:
        attach(model, layout_of(model), NoLayers(), NoTable(), config.model.recompute)
    return model


def _stream(config: RunConfig, model: nn.Module, stored: StoredWeights, process: ProcessContext, note: Note) -> None:
    """Let what was left out of a model come from where the run has it."""
    layout, tokens = layout_of(model), left_out_table(model)
    if config.engine.stream_layers == "ram":
        layers, table = in_ram(stored, layout, tokens, process, note)
    else:
        layers, table = on_disk(stored, layout, tokens, config.cache.limit_bytes, note)
    attach(model, layout, layers, table, config.model.recompute)


def _left_out(config: RunConfig, model: nn.Module) -> list[str]:
    """Return the names of the weights that a run streams."""
    grows, engine = bool(config.model.resize_embeddings), config.engine
    return names_to_stream(model, table_grows=grows, with_head=engine.stream_head)


def build_bare_model(config: RunConfig, architecture: Any, dtype: torch.dtype) -> nn.Module:
    """Build the transformers model alone, without weights, on `meta`, before the method changes it.

    Args:
        config: the run.
        architecture: any transformers configuration.
        dtype: of its weights.

    Returns:
        A transformers model in evaluation mode.

    Raises:
        ModelError: transformers has no such model for the task.
    """
    kind = auto_class(config.task)
    try:
        with torch.device("meta"):
            # A copy: the model keeps its configuration, and tables that grow write their new size into it.
            model: nn.Module = kind.from_config(deepcopy(architecture), dtype=dtype, **attention(config.model))
    except ValueError as error:
        if foreign.TransformersSays.NO_MODEL_FOR_TASK not in str(error):
            raise
        raise ModelError(
            f"transformers has no {architecture.model_type} model for {config.task}; choose another model or task"
        ) from error
    return model.eval()


def prepare_model(config: RunConfig, model: nn.Module, dtype: torch.dtype, start: Start) -> nn.Module:
    """Freeze, quantize, adapt and checkpoint a loaded model, as its configuration says.

    Args:
        config: the run.
        model: a transformers model.
        dtype: what it computes in.
        start: what is new in it.

    Returns:
        The module to train: the same one, or a PEFT model around it.

    Raises:
        ModelError: the method does not fit the model.
    """
    if config.model.offload_activations:
        offload.attach(model)
    set_recompute(model, config.model.recompute)
    if config.model.mlp_tile_tokens is not None:
        tile_mlps(model, config.model.mlp_tile_tokens)
    if config.model.lean:
        make_grouped(model)
        seed_attention(model)
        shorten(model)
    with warnings.catch_warnings():
        # PEFT 0.21 asks for it (peft_model.py); nobody who calls ftkit could mend that.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        prepared = method_of(config).prepare(model, start, dtype)
    if config.model.lean:
        _make_lean(config, prepared)
    return prepared


def _make_lean(config: RunConfig, model: nn.Module) -> None:
    """Put exact replacements that cost less into a model, where they cover it."""
    seed_dropouts(model)
    make_lean(model)
    lean_norms(model)
    if config.task == "causal-lm":
        chunk_loss(unwrapped(model))
    else:
        pool_early(unwrapped(model))
        unpad(unwrapped(model), SEEDED_ATTENTION)


def weight_lines(model: nn.Module) -> Iterator[str]:
    """Yield what a user of adapters may not expect: weights that stay whole, and experts without adapters.

    Args:
        model: what `prepare_model` returned.
    """
    weights = [(name, one) for name, one in model.named_parameters() if not one.requires_grad]
    packed = sum(num_weights(one) for _, one in weights if foreign.is_packed(one))
    if packed:
        whole: Counter[str] = Counter()
        for name, one in weights:
            if not foreign.is_packed(one):
                whole[name.split(".")[-2]] += one.numel()
        total = packed + whole.total()
        largest = [f"{name} {count / total:.1%}" for name, count in whole.most_common(_LISTED)]
        yield f"in 4 bits: {packed / total:.1%} of the frozen weights; whole stay {', '.join(largest)}"
    adapted = [name for name, one in model.named_parameters() if one.requires_grad and "experts" in name]
    if is_adapted(model) and not adapted and next(expert_parameters(model), None):
        cure = "" if packed else "; method.targets=[all-linear,experts] adds them"
        yield f"no adapter stands beside an expert{cure}"


def check_positions(model: nn.Module, longest: int) -> None:
    """Refuse sequences longer than a model's table of positions; rotary and relative positions have no end.

    Args:
        model: a transformers model.
        longest: tokens of the longest sequence.

    Raises:
        ConfigError: naming the most that the model takes.
    """
    most = num_positions(model)
    if most is not None and longest > most:
        raise ConfigError(
            f"the longest sequence has {longest} tokens, and the model has {most} positions; try --max-length {most}"
        )


def num_positions(model: nn.Module) -> int | None:
    """Return how many tokens a model's table of positions is for; None: rotary and relative positions have no end."""
    tables = (
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITION_TABLES
    )
    # RoBERTa and OPT count from behind the padding token.
    firsts = (
        (one, one.padding_idx + 1 if one.padding_idx is not None else getattr(one, "offset", 0)) for one in tables
    )
    return min((one.num_embeddings - first for one, first in firsts), default=None)


def check_tokens(model: nn.Module, highest: int) -> None:
    """Refuse a token that the model has no row for.

    Args:
        model: a transformers model, or one around it.
        highest: the highest number of a token in the data.

    Raises:
        ConfigError: naming the number of rows and the cure.
    """
    num_rows = cast(Any, model).get_input_embeddings().weight.shape[0]
    if highest >= num_rows:
        raise ConfigError(
            f"the data has the token number {highest}, and the model's table of tokens {num_rows} rows; let the table "
            "grow with --set model.resize_embeddings=true, or take that token out of the texts"
        )


def set_training(model: nn.Module, is_training: bool) -> None:
    """Switch dropout: a frozen trunk stays in evaluation mode, but for the new modules inside it.

    With adapters the trunk is what lies below the lowest layer that has some; with adapters in all layers, nothing.

    Args:
        model: what `build_model` returned.
        is_training: training or evaluation mode.
    """
    model.train(is_training)
    if not is_training or (is_adapted(model) and not first_trained_layer(model)):
        return
    trained = _trained_layers(model)
    for child in unwrapped(model).children():
        if all(parameter.requires_grad for parameter in child.parameters()):
            continue
        child.eval()
        for module in child.modules():
            own = list(module.parameters())
            if module in trained or (own and all(parameter.requires_grad for parameter in own)):
                module.train()


def _trained_layers(model: nn.Module) -> set[nn.Module]:
    """Return the layers that hold adapters or trained weights."""
    found, first = transformer_layers(model), first_trained_layer(model)
    return set() if found is None or first is None else set(found[1][first:])


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights, those packed in 4 bits counted one by one."""
    return sum(num_weights(parameter) for parameter in model.parameters())


def num_weights(parameter: nn.Parameter) -> int:
    """Return the numbers that a weight stands for: packed or not, partitioned or not, streamed or not."""
    state = getattr(parameter, "quant_state", None)  # on `meta` a weight has none, and is not packed yet
    return whole_numel(parameter) if state is None else int(state.shape.numel())
