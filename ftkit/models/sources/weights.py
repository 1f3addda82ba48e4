"""Load a model's weights, and refuse what is not whole: only a head may be new, and a table may grow on request."""

import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import nn

from ftkit.config.tree import ModelConfig, RunConfig, Task
from ftkit.errors import ConfigError, ModelError
from ftkit.models import foreign
from ftkit.models.left_out import left_out
from ftkit.models.sources.foreign import import_losses, reading_what_stays
from ftkit.models.sources.source import Source, explained_loading
from ftkit.models.sources.start import Start
from ftkit.models.structure.heads import classifies, find_head, head_names, output_names, task_modules

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_LISTED = 3
"""Tensors that an error names; it counts the others."""

Note = Callable[[str], None]
Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Tensor to its shape in the weights and its shape in the model, where the two differ."""


def load_weights(
    config: RunConfig,
    source: Source,
    architecture: Any,
    dtype: torch.dtype,
    note: Note,
    without: Collection[str] = (),
) -> tuple[nn.Module, Start]:
    """Load a transformers model.

    Args:
        config: the run; its seed draws what is new.
        source: where the weights are.
        architecture: what `load_config` returned.
        dtype: what the weights are loaded in.
        note: told what is new.
        without: modules, or weights, that stay on `meta`.

    Returns:
        The model in evaluation mode, and what is new in it.

    Raises:
        ModelError: the weights cannot be loaded, or lack something that is not a head.
        ConfigError: a new head for a model that has none of its own.
    """
    torch.manual_seed(config.training.seed)
    placed = {"device_map": {"": "cpu"} | dict.fromkeys(without, "meta")} if without else {}
    reading = reading_what_stays() if without else nullcontext()
    kind = auto_class(config.task)
    with explained_loading(source, f"weights for {config.task}"), foreign.without_hooks(), reading, _told_here():
        model, info = kind.from_pretrained(
            source.name,
            config=architecture,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **source.arguments,
            **attention(config.model),
            **placed,
        )
    shapes = {name: (tuple(theirs), tuple(ours)) for name, theirs, ours in info["mismatched_keys"]}
    missing = set(info["missing_keys"]) | shapes.keys()
    _check_layers(model, source, info["unexpected_keys"])
    _check_trunk(model, source, missing, shapes)
    if config.model.new_head:
        _draw_head(model, source)
    else:
        _check_head(source, shapes)
    rows = grow_tables(model, config.model)
    start = Start(find_head(model, missing), rows, source.adapter, config.model.new_head)
    for line in _news(start, missing):
        note(line)
    if unused := sorted(info["unexpected_keys"]):
        note(f"weights that this model has no place for, and does not use: {_listed(unused)}")
    return model.eval(), start


@contextmanager
def _told_here() -> Iterator[None]:
    """Keep transformers from warning of weights that are new or unused: they are told, or refused, in our words."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    if not os.environ.get("FTKIT_VERBOSE"):
        logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def grow_tables(model: nn.Module, config: ModelConfig) -> range:
    """Give the tables of tokens as many rows as `resize_embeddings` says, drawn about the mean of the others.

    Args:
        model: a transformers model, on `meta` or not.
        config: its section; `true` that has not been settled yet changes nothing.

    Returns:
        The numbers of the new rows.
    """
    table, asked = cast(Any, model).get_input_embeddings().weight, config.resize_embeddings
    rows = range(len(table), int(asked))
    if isinstance(asked, bool) or not rows:
        return range(0)
    # The mean is that of the old rows and their covariance (Hewitt 2021), which `meta` cannot compute.
    cast(Any, model).resize_token_embeddings(asked, mean_resizing=not table.is_meta)
    return rows


def copy_small(model: nn.Module) -> None:
    """Give norms and biases memory of their own, before large weights are replaced one by one.

    Each is a view of a whole file, whose pages would stay as long as it does.

    Args:
        model: what `load_weights` returned, or one on `meta`.
    """
    for parameter in model.parameters():
        if parameter.ndim == 1 and left_out(parameter) is None:
            parameter.data = parameter.data.clone()


def auto_class(task: Task) -> Any:
    """Return transformers' class that finds the model of a task; asked before anything imports transformers' models."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    import_losses()
    return AutoModelForSequenceClassification if task == "sequence-classification" else AutoModelForCausalLM


def attention(config: ModelConfig) -> dict[str, str]:
    """Return transformers' argument that chooses the attention; none where it chooses itself."""
    return {} if config.attention == "auto" else {"attn_implementation": config.attention}


def _check_layers(model: nn.Module, source: Source, unexpected: Collection[str]) -> None:
    """Refuse weights that hold more layers than config.json asks for: the last ones would be cut off in silence."""
    known = {_NUMBER.sub("#", name) for name in model.state_dict()}
    prefix = cast(Any, model).base_model_prefix
    cut_off = [name for name in unexpected if {_NUMBER.sub("#", one) for one in (name, f"{prefix}.{name}")} & known]
    if cut_off:
        raise ModelError(
            f"the weights of {source.name} hold layers that its config.json does not ask for ({_listed(cut_off)}); "
            "give the config.json that belongs to the weights, or save a model of fewer layers whole"
        )


def _check_trunk(model: nn.Module, source: Source, missing: Collection[str], shapes: Shapes) -> None:
    """Refuse what is missing or of another shape outside the head."""
    heads = tuple(f"{name}." for name in head_names(model))
    lacking = [name for name, _ in model.named_parameters() if name in missing and not name.startswith(heads)]
    lacking += sorted(name for name in missing if name not in lacking and not name.startswith(heads))
    if not lacking:
        return
    trunk = [name for name, _ in model.named_parameters() if not name.startswith(heads)]
    if all(name in missing for name in trunk):
        raise ModelError(
            f"{source.name} holds no weight of {type(model).__name__}; is its config.json of another model?"
        )
    described = [_shape(name, shapes) for name in lacking]
    is_lacking_output = not classifies(model) and any(name.startswith(output_names(model)) for name in lacking)
    cure = (
        "it is not a model for causal-lm" if is_lacking_output else "give the config.json that belongs to the weights"
    )
    raise ModelError(
        f"the weights of {source.name} are not those of its config.json, and only a head may be new: "
        f"{_listed(described)}; {cure}"
    )


def _check_head(source: Source, shapes: Shapes) -> None:
    """Refuse a trained head of another size; `_check_trunk` has left nothing else of another shape."""
    if shapes:
        raise ModelError(
            f"{source.name} has a trained head of another size: {_listed([_shape(name, shapes) for name in shapes])}; "
            "draw a new one with --set model.new_head=true"
        )


def _draw_head(model: nn.Module, source: Source) -> None:
    """Draw the weights of a classifier's own modules, trained or not."""
    if not classifies(model):
        raise ConfigError(
            f"model.new_head=true draws the head of a classifier, and {source.name} is trained as a language model; "
            "leave it out"
        )
    for name in task_modules(model):
        foreign.draw_anew(model, model.get_submodule(name))


def _news(start: Start, missing: Collection[str]) -> Iterator[str]:
    """Yield what is new, for the user."""
    absent = [name for name in start.head if any(one.startswith(f"{name}.") for one in missing)]
    replaced = [name for name in start.head if name not in absent] if start.has_new_head else []
    if start.adapter is not None:
        yield f"going on from the adapter in {start.adapter}"
    if absent and (start.adapter is None or start.has_new_head):
        yield f"new, drawn by the seed: {', '.join(absent)}"
    if replaced:
        yield f"new, in the place of what was trained: {', '.join(replaced)}"
    if start.rows:
        yield f"new: rows {start.rows[0]} to {start.rows[-1]} of the table of tokens; they train"


def _shape(name: str, shapes: Shapes) -> str:
    if name not in shapes:
        return f"{name} is missing"
    theirs, ours = shapes[name]
    return f"{name} is {list(theirs)} in the weights and {list(ours)} in config.json"


def _listed(names: Collection[str]) -> str:
    first = list(itertools.islice(names, _LISTED))
    return ", ".join(first) + (f", and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
