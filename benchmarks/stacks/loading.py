"""What transformers 5 leaves in the allocator when it loads a model onto a card and packs its weights there.

The tensors that live after it are known without this; what is reserved is not. Loading begins with one block as large
as the model, which is freed at once, and every weight comes in half precision before it is packed or widened. So the
step finds free pieces of all sizes, and some weights lie in blocks that are up to 1 MiB larger, since so small a rest
is not split off (transformers/modeling_utils.py, caching_allocator_warmup; core_model_loading.py,
convert_and_load_state_dict_in_model; integrations/bitsandbytes.py, Bnb4bitQuantize; peft/utils/other.py,
prepare_model_for_kbit_training).

Four threads read weights ahead of the one that packs them. How far ahead is up to the disk; here each is packed before
the next one comes.
"""

from typing import Any

import torch
from torch import nn

from ftkit.models import bnb
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role


def onto_a_card(recorder: Recorder, model: nn.Module, dtype: torch.dtype) -> None:
    """Write on the tape how the weights of a model came, all but its adapters.

    Args:
        recorder: watches, and knows none of the weights yet.
        model: of fake tensors, as it is when it has been packed, widened and adapted.
        dtype: in which its files are read.
    """
    weights = {name: one for name, one in model.named_parameters() if "lora_" not in name}
    states = {name: _state(model, name) for name in weights}
    sizes = [one.numel() * (dtype.itemsize if states[name] is None else one.itemsize) for name, one in weights.items()]
    torch.empty(sum(sizes), dtype=torch.uint8)  # and nobody keeps it
    read: dict[str, torch.Tensor] = {}
    for name in sorted(weights, key=_place):
        state = states[name]
        read[name] = torch.empty(weights[name].shape if state is None else state.shape, dtype=dtype)
        if state is not None:
            recorder.see([(name, weights[name]), *bnb.state_tensors(state).items()], Role.PARAMETER)
            del read[name]
    for name in [name for name in weights if name in read]:
        recorder.see([(name, weights[name])], Role.PARAMETER)
        del read[name]


def _state(model: nn.Module, name: str) -> Any:
    """Return the constants of a weight if it is packed."""
    layer, _, last = name.rpartition(".")
    return getattr(model.get_submodule(layer), "quant_state", None) if last == "weight" else None


def _place(name: str) -> list[tuple[int, str]]:
    """Return by what files are read: numbers count as such (core_model_loading.py, dot_natural_key)."""
    parts = name.removeprefix("base_model.model.").replace(".base_layer", "").split(".")
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
