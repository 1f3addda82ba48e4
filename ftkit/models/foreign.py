"""Names of torch, transformers, bitsandbytes and peft that are not public, or that ftkit replaces for a while.

Each is a function that says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed
libraries for each, so that an upgrade names what has gone.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from enum import StrEnum
from functools import cache, wraps
from typing import Any, cast

import torch
from torch import nn


class TransformersSays(StrEnum):
    """Words by which an error of transformers is told from others of its class (transformers 5.23)."""

    NO_MODEL_FOR_TASK = "Unrecognized configuration class"
    """models/auto/auto_factory.py: the task has no class for this architecture."""


@contextmanager
def patched(module: Any, name: str, replacement: Any) -> Iterator[None]:
    """Let something else stand under a name of a module while a block runs.

    Args:
        module: whose callers look the name up when they call.
        name: of the module; it has to be there.
        replacement: what stands there meanwhile.

    Raises:
        AttributeError: there is no such name, so nobody would call the replacement.
    """
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)


# --- torch ------------------------------------------------------------------------------------------------------------


def storage_key(storage: torch.UntypedStorage) -> int:
    """Return what tells a storage from all others that live: `_cdata` (torch 2.13, storage.py), its address."""
    key: int = storage._cdata
    return key


def saving_hooks() -> tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]:
    """Return the hooks by which autograd saves tensors here and brings them back; without any, it keeps the tensors.

    `_top_saved_tensors_default_hooks` (torch 2.13, _C/_autograd.pyi).
    """
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(True)  # `ignore_is_tracing`, by place
    return hooks or (lambda tensor: tensor, lambda tensor: tensor)


def compiling_later() -> AbstractContextManager[None]:
    """Let functions that `torch.compile` decorates be compiled when they are first called (torch 2.13, __init__.py).

    bitsandbytes decorates its fallback kernels with it, which loads the whole compiler at once: a second of every
    start, for kernels that most runs never call (bitsandbytes 0.50, backends/default/ops.py).
    """
    compile_now = torch.compile

    def compile_later(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        compiled = cache(lambda: compile_now(function, **settings))

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            return compiled()(*args, **kwargs)

        return call

    return patched(torch, "compile", compile_later)


def has_values(tensor: torch.Tensor) -> bool:
    """Return whether a tensor has values: one on `meta` or a fake one has none.

    Source: torch 2.13, torch/_subclasses/fake_tensor.py.
    """
    from torch._subclasses.fake_tensor import FakeTensor

    return not tensor.is_meta and not isinstance(tensor, FakeTensor)


# --- transformers -----------------------------------------------------------------------------------------------------


def without_hooks() -> AbstractContextManager[None]:
    """Let a model that is loaded in part on `meta` be without accelerate's hooks, which would fetch what is not there.

    `accelerate_dispatch` (transformers 5.23, modeling_utils.py, as it has imported it).
    """
    from transformers import modeling_utils

    return patched(modeling_utils, "accelerate_dispatch", lambda *_, **__: None)


def checkpointing_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that can recompute: `GradientCheckpointingLayer` (transformers 5.23, modeling_layers.py)."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def set_recomputing(layer: nn.Module, checkpoint: Callable[..., Any], *, recomputes: bool) -> None:
    """Decide whether a layer recomputes (transformers 5.23, modeling_layers.py, GradientCheckpointingLayer.__call__).

    Args:
        layer: one of `checkpointing_layers`.
        checkpoint: called with the layer's forward and its positional arguments.
        recomputes: in training.
    """
    cast(Any, layer).gradient_checkpointing = recomputes
    cast(Any, layer)._gradient_checkpointing_func = checkpoint


def draw_anew(model: nn.Module, module: nn.Module) -> None:
    """Draw the weights of a module as those of a new model are drawn, by torch's generator.

    transformers 5.23, `PreTrainedModel._init_weights` and the mark `_is_hf_initialized` of what has been loaded, which
    `transformers.initialization` leaves alone.

    Args:
        model: a transformers model.
        module: a part of it; its weights are overwritten.
    """
    for part in module.modules():
        for tensor in part.parameters(recurse=False):
            cast(Any, tensor)._is_hf_initialized = False
        cast(Any, model)._init_weights(part)


LINEAR = {
    "Linear4bit": "bitsandbytes 0.50, nn/modules.py",
    "Conv1D": "transformers 5.23, pytorch_utils.py",
    "FalconLinear": "transformers 5.23, models/falcon/modeling_falcon.py",
}
"""Classes that do as a linear layer does, and where they are."""


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a layer is GPT-2's linear one, which holds its weight as [in, out]."""
    return type(module).__name__ == "Conv1D"


def attends_by_sdpa(model: nn.Module) -> bool:
    """Return whether a model's layers call transformers' `sdpa` by its name, and ask for it nowhere else.

    `_can_set_attn_implementation` (transformers 5.23, modeling_utils.py) tells the models that look attention up by
    name; some of them compare the name where they make masks (models/gemma4/modeling_gemma4.py).
    """
    theirs = cast(Any, model)
    if theirs.config._attn_implementation != "sdpa" or not theirs._can_set_attn_implementation():
        return False
    return '_attn_implementation == "sdpa"' not in inspect.getsource(sys.modules[type(model).__module__])


def attend_by(model: nn.Module, name: str, attention: Callable[..., Any]) -> None:
    """Let a model's layers attend by another function, which gets the masks that `sdpa` gets.

    Args:
        model: a transformers model; changed in place.
        name: under which transformers keeps the function (its AttentionInterface).
        attention: takes and returns what transformers' `sdpa_attention_forward` does.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, sdpa_mask)
    cast(Any, model).set_attn_implementation(name)


def sdpa(*arguments: Any, **settings: Any) -> Any:
    """Attend as transformers' `sdpa` does (transformers 5.23, integrations/sdpa_attention.py)."""
    from transformers.integrations import sdpa_attention

    return sdpa_attention.sdpa_attention_forward(*arguments, **settings)


def sdpa_kin(config: Any) -> Callable[..., Any] | None:
    """Return the function by which the layers of a model attend, where it takes masks of `sdpa`; else None.

    `ALL_ATTENTION_FUNCTIONS` (transformers 5.23, modeling_utils.py) has the functions by their names.

    Args:
        config: of a transformers model.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name: str = config._attn_implementation
    return ALL_ATTENTION_FUNCTIONS[name] if name.startswith("sdpa") else None


POOLED_BY_FIRST = {
    "BertAttention": "bert",
    "CamembertAttention": "camembert",
    "ElectraAttention": "electra",
    "ErnieAttention": "ernie",
    "RobertaAttention": "roberta",
    "XLMRobertaAttention": "xlm_roberta",
}
"""Attentions that do as BERT's, of models whose classifiers read the first token alone, and their modules' folders.

transformers 5.23, models/*/modeling_*.py.
"""


HANDS_SETTINGS_ON = POOLED_BY_FIRST | {"DistilBertSelfAttention": "distilbert"}
"""Attentions of encoders whose layers hand any keyword on to the function that attends, and do all else token by token.

transformers 5.23, models/*/modeling_*.py.
"""


def hands_groups_over(mask: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether `sdpa` leaves grouped heads to torch: `use_gqa_in_sdpa` (transformers 5.23, the same file)."""
    from transformers.integrations import sdpa_attention

    return sdpa_attention.use_gqa_in_sdpa(mask, key, value)


# --- bitsandbytes and peft, which are asked by name since loading them takes a second ---------------------------------


def is_packed(parameter: torch.Tensor) -> bool:
    """Return whether a parameter is, or is to become, 4-bit: `Params4bit` (bitsandbytes 0.50, nn/modules.py)."""
    return type(parameter).__name__ == "Params4bit"


def as_packed(parameter: nn.Parameter, like: nn.Parameter, state: Any) -> nn.Parameter:
    """Make an ordinary parameter pass for a 4-bit one (bitsandbytes 0.50, nn/modules.py, Params4bit.__new__).

    Args:
        parameter: the packed values, or a tensor without any, whose class cannot be another.
        like: a `Params4bit`, whose attributes it gets.
        state: its constants.

    Returns:
        The same parameter.
    """
    vars(parameter).update(vars(like), quant_state=state, bnb_quantized=True)
    return parameter


def keep_layout(layer: nn.Module) -> None:
    """Keep a 4-bit layer from packing its weight anew, in place, when it first evaluates on a CPU.

    ZeRO-3 loses such a change, and training would go on with the other layout: `support_avx512bf16_for_cpu`
    (bitsandbytes 0.50, nn/modules.py, Linear4bit.forward).
    """
    cast(Any, layer).support_avx512bf16_for_cpu = False


def without_dynamic_map(bitsandbytes: Any) -> AbstractContextManager[None]:
    """Leave the table of 8-bit numbers open, for tensors without values (bitsandbytes 0.50, functional.py)."""
    return patched(bitsandbytes.functional, "create_dynamic_map", lambda **_: torch.empty(256))


def say_loaded_in_4bit(model: nn.Module) -> None:
    """Say that a model is in 4 bits, which is how PEFT chooses its adapters (peft 0.21, tuners/lora/bnb.py)."""
    cast(Any, model).is_loaded_in_4bit = True


def moved_targets(model: nn.Module) -> frozenset[str]:
    """Return the last names of linear layers whose adapters PEFT would put beside experts instead.

    It takes them for the names that experts had in transformers 4 (peft 0.21, utils/transformers_weight_conversion.py,
    _convert_peft_config_moe), when adapters are made and when they are loaded.
    """
    from peft.utils import transformers_weight_conversion as public

    conversion: Any = public
    kind = conversion._MODEL_TO_CONVERSION_PATTERN.get(getattr(getattr(model, "config", None), "model_type", None))
    is_moved = bool(conversion._MOE_FUSED_TARGETS.get(kind or ""))
    return frozenset(conversion._MOE_TARGET_MODULE_MAPPING.get(kind or "", ())) if is_moved else frozenset()


@contextmanager
def without_bitsandbytes() -> Iterator[None]:
    """Hide bitsandbytes, if nobody has imported it yet, from PEFT, which would load it for adapters of any model.

    PEFT imports it at its own start (peft 0.21, helpers.py), and asks at each adapter whether the layer is in 4 bits
    (tuners/lora/model.py, _create_new_module). What it has found it remembers (import_utils.py, is_bnb_available and
    is_bnb_4bit_available); a QLoRA may follow in this process.
    """
    if "bitsandbytes" in sys.modules:
        yield
        return
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # how Python is told that there is no such module
    try:
        yield
    finally:
        del sys.modules["bitsandbytes"]
        from peft import import_utils

        import_utils.is_bnb_available.cache_clear()
        import_utils.is_bnb_4bit_available.cache_clear()


def dora_reading(unpack: Callable[[Any], torch.Tensor | None]) -> AbstractContextManager[None]:
    """Let DoRA read weights that are 4-bit and have no values.

    PEFT unpacks a weight that is of bitsandbytes' class (peft 0.21, utils/integrations.py, dequantize_module_weight,
    as tuners/lora/dora.py imports it). On `meta` such a weight has not been packed; a fake one is of torch's class.

    Args:
        unpack: from a weight to the whole one; None: it is read as PEFT reads it.
    """
    from peft.tuners.lora import dora

    plain = cast(Any, dora).dequantize_module_weight

    def read(module: nn.Module) -> Any:
        whole = unpack(module.weight)
        return plain(module) if whole is None else whole

    return patched(dora, "dequantize_module_weight", read)
