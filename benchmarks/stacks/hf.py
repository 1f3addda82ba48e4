"""What the stacks on top of transformers and PEFT share: a row's model, built on `meta`, and its adapters."""

import re
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import nn

from benchmarks.rows import Arch, Row, arch_of, has_length
from ftkit.models import bnb
from ftkit.models.sources.known import shapes, table_names

INNER = ("intermediate_size", "n_inner", "hidden_dim", "ffn_hidden_size", "ffn_dim")
"""What types call the width inside a layer."""
HEADS = ("lm_head", "score", "classifier")
"""What transformers calls heads, which are neither quantized nor adapted."""
ALIKE = {"c_attn": ("q_proj", "k_proj", "v_proj"), "query": ("q_proj",), "value": ("v_proj",), "key": ("k_proj",)}
"""What other libraries call a layer, or several of them in one, to transformers' names."""


SIZES = ("hidden", "layers", "heads", "intermediate", "vocab")
"""What every model has."""
KNOWN_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "num_key_value_heads", "num_kv_heads"),
    *("head_dim", "max_position_embeddings", "original_max_position_embeddings", "n_ctx", "max_seq_len"),
    *("sliding_window", "_sliding_window_pattern", "sliding_window_pattern", "max_window_layers"),
    *("pretraining_tp", "query_pre_attn_scalar", "rotary_dim", "type_vocab_size", "no_rope_layer_interval"),
    *("word_embed_proj_dim", "num_labels"),
)
"""What transformers calls sizes that a row states, or on which next to nothing depends."""
TYPES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "16-mixed": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
"""What rows call types."""


def type_in(text: str) -> torch.dtype | None:
    """Return the first type that a text names, or None."""
    found = re.search("|".join(TYPES), text)
    return TYPES[found[0]] if found else None


def half(row: Row) -> torch.dtype:
    """Return the half precision of a row: that which it computes in, or that of its weights."""
    found = type_in(row["compute_dtype"])
    if found in (None, torch.float32):
        found = type_in(row["base_dtype"])
    return torch.bfloat16 if found in (None, torch.float32) else found


def mixed(row: Row) -> torch.dtype | None:
    """Return the dtype of a row's autocast, or None."""
    is_cast = re.search(r"(?<!no )\bautocast\b|mixed", row["compute_dtype"])
    return half(row) if is_cast else None


def architecture(row: Row) -> Any:
    """Return the transformers configuration of a row, made of what its `arch` says."""
    import transformers

    arch = arch_of(row)
    kind = model_type(arch)
    usual = transformers.CONFIG_MAPPING[kind]()
    fields: dict[str, Any] = {
        "hidden_size": arch["hidden"],
        "num_hidden_layers": arch["layers"],
        "num_attention_heads": arch["heads"],
        next((one for one in INNER if hasattr(usual, one)), INNER[0]): arch["intermediate"],
        "vocab_size": arch["vocab"],
        "tie_word_embeddings": bool(arch.get("tie_embeddings")),
        "use_cache": False,
        "pad_token_id": 0,
    }
    if classifies(row):
        fields["problem_type"] = "single_label_classification"
    if kind == "phi":
        fields["partial_rotary_factor"] = 0.5
    if kind == "falcon":
        shared = arch.get("kv_heads") or arch["heads"]
        fields |= {"num_kv_heads": shared, "multi_query": shared == 1}
        fields["new_decoder_architecture"] = 1 < shared < arch["heads"]
    optional = {
        "num_key_value_heads": arch.get("kv_heads") or arch["heads"],
        "head_dim": arch.get("head_dim"),
        "max_position_embeddings": max_positions(row),
    }
    names = usual.attribute_map
    fields |= {name: value for name, value in optional.items() if value and names.get(name, name) in vars(usual)}
    if arch.get("num_labels"):
        fields["num_labels"] = arch["num_labels"]
    return transformers.AutoConfig.for_model(kind, **{names.get(name, name): value for name, value in fields.items()})


def max_positions(row: Row) -> int | None:
    """Return the positions of a row's model, which old versions keep tables of: its own, or the planner's table's."""
    if "max_pos" in arch_of(row):
        return arch_of(row)["max_pos"]
    name = row["model_id"].rsplit("/", 1)[-1].lower()
    found = max((key for key in table_names() if name.startswith(key)), key=len, default=None)
    return shapes(found).get("max_position_embeddings") if found else None


def model_type(arch: Arch) -> str:
    """Return what transformers calls the type of a row's model, from what the row says of it.

    Raises:
        LookupError: it does not know the class.
    """
    from transformers.models.auto import modeling_auto as auto

    name = arch["arch_class"]
    tables = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    kinds = [kind for table in tables for kind, class_name in table.items() if class_name == name]
    if not kinds:
        raise LookupError(f"transformers has no class {name}")
    # Some types share another's class.
    return next((kind for kind in kinds if name.lower().startswith(kind.replace("_", ""))), kinds[0])


def reason_unstated(row: Row) -> str | None:
    """Return which size of a row's model its `arch` does not state, so that another model's would be taken, or None."""
    import transformers

    arch: dict[str, Any] = {**(row["arch"] or {})}
    if not arch:
        return "the sizes of its model are not known"
    for name in SIZES:
        if type(arch.get(name)) is not int or arch[name] < 1:
            return f"its model's size {name!r} is not stated"
    if not arch.get("head_dim") and arch["hidden"] % arch["heads"]:
        return f"its model's {arch['hidden']} wide layers have {arch['heads']} heads, whose width is not stated"
    try:
        config = architecture(row)
    except LookupError:
        return "its model's code is not in transformers"
    stated = {*arch, *KNOWN_SIZES, *vars(transformers.PretrainedConfig()), *config.attribute_map.values(), *INNER}
    for name, value in vars(config).items():
        if type(value) is int and name not in stated and not name.endswith("token_id"):
            return f"its model's {name} is not stated"
    if not arch.get("head_dim") and getattr(config, "head_dim", None) not in (None, arch["hidden"] // arch["heads"]):
        return f"the width of its model's heads is not stated ({config.head_dim} are usual)"
    return None


def reason_windowed(row: Row) -> str | None:
    """Return why a row's attention may look back less far than its sequences are long, or None."""
    window = getattr(architecture(row), "sliding_window", None)
    if window and has_length(row) and row["seq_len"] > window:
        return f"whether its attention has a window is not stated ({window} tokens are usual)"
    return None


def reason_no_layer(row: Row) -> str | None:
    """Return which of a row's adapted layers its model does not have, or None."""
    if row["lora_r"] is None:
        return None
    model = build(row | {"arch": arch_of(row) | {"layers": 1}}, torch.bfloat16, None)
    try:
        adapted(row, model)
    except LookupError as error:
        return str(error)
    return None


def classifies(row: Row) -> bool:
    """Return whether a row's head classifies sequences."""
    return "classification" in (row["loss_head"] or "").lower()


def build(row: Row, dtype: torch.dtype, attention: str | None) -> Any:
    """Build a row's model on `meta`.

    Args:
        row: says which.
        dtype: of its weights.
        attention: transformers' name of an implementation, `eager` where the model has no other; None: of a version
            that has but one.
    """
    import transformers

    heads = transformers.AutoModelForSequenceClassification, transformers.AutoModelForCausalLM
    kind: Any = heads[0] if classifies(row) else heads[1]
    config = architecture(row)
    if attention == "sdpa" and not kind._model_mapping[type(config)]._supports_sdpa:
        attention = "eager"
    options = {} if attention is None else {"torch_dtype": dtype, "attn_implementation": attention}
    with torch.device("meta"):
        model = kind.from_config(config, **options)
    return model.train()


def adapted(row: Row, model: nn.Module) -> list[str]:
    """Return the names of the layers that a row adapts, as its model calls them: all linear ones if it says so.

    Raises:
        LookupError: the model does not have one of them.
    """
    said = str(row["lora_target_modules"]).partition("(")[0]
    if re.match("all([- ]linear)?$", said.strip()):
        return targets_of_all(model)
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)}
    found = set()
    for name in said.replace(",", " ").split():
        alike = {name} & names or set(ALIKE.get(name, ())) & names
        if not alike:
            raise LookupError(f"{type(model).__name__} has no linear layer {name} to adapt")
        found |= alike
    return sorted(found)


def _is_linear(module: nn.Module) -> bool:
    """Return whether a layer is linear: of torch, in 4 bits, or packed by GPTQ."""
    return bnb.is_linear(module) or hasattr(module, "qweight")


def targets_of_all(model: nn.Module) -> list[str]:
    """Return the names of all linear layers but the head."""
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if _is_linear(module)}
    return sorted(names.difference(HEADS))


def repeated_heads() -> AbstractContextManager[Any]:
    """Repeat key and value before torch attends."""
    attention = nn.functional.scaled_dot_product_attention

    def repeating(query: Any, key: Any, value: Any, *args: Any, **settings: Any) -> Any:
        if (groups := query.shape[-3] // key.shape[-3]) > 1:
            key, value = (one.repeat_interleave(groups, dim=-3) for one in (key, value))
            settings.pop("enable_gqa", None)
        return attention(query, key, value, *args, **settings)

    return mock.patch.object(nn.functional, "scaled_dot_product_attention", repeating)


def use_flash_attention(model: Any) -> Any:
    """Let a model call flash-attn's function, which keeps keys and values of grouped heads as they are.

    Args:
        model: of a transformers that looks attention up when it is called (since 4.48).

    Returns:
        A patch to enter.
    """
    from transformers.integrations import flash_attention

    model.config._attn_implementation = "flash_attention_2"

    def flash(query: Any, key: Any, value: Any, *_: Any, target_dtype: Any = None, **__: Any) -> torch.Tensor:
        dtype = target_dtype if query.dtype == torch.float32 and target_dtype is not None else query.dtype
        heads_first = [tensor.to(dtype).transpose(1, 2) for tensor in (query, key, value)]
        out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(*heads_first, 0.0, True)[0]
        return out.transpose(1, 2)

    # What it does with masks and packed sequences depends on values; here there is one whole sequence in a row.
    return mock.patch.object(flash_attention, "_flash_attention_forward", flash)
