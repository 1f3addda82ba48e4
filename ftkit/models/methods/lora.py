"""LoRA, plain and over 4-bit weights: adapters beside frozen linear layers; the only importer of peft."""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ftkit.config.methods import MethodSection
from ftkit.errors import ModelError
from ftkit.models.sources.adapters import WEIGHTS
from ftkit.models.sources.source import PROBLEM_TYPES

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.models.card import Card
    from ftkit.models.saving.dtypes import Named
    from ftkit.models.sources.start import Start

_KEEP_LAYOUT = (
    "# On some CPUs bitsandbytes packs weights anew when they are first used, and DoRA would misread them.",
    "for module in model.modules():",
    '    if hasattr(module, "support_avx512bf16_for_cpu"):',
    "        module.support_avx512bf16_for_cpu = False",
)


class Lora(MethodSection):
    """Train low-rank adapters beside frozen weights, and the head where it is new."""

    name: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1)
    """The rank r of the update B A."""
    alpha: float = Field(default=16.0, gt=0.0)
    """The update is scaled by alpha / rank (alpha / sqrt(rank) with rsLoRA)."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on the input of the adapters."""
    targets: tuple[str, ...] = ("all-linear",)
    """Module names, or presets: `attention`, `mlp`, `all-linear`, and `experts` for those of a mixture in 16 bits."""
    layers: tuple[int, ...] | None = None
    """The layers to adapt, counted from 0; all when not named."""
    top_layers: int | None = Field(default=None, ge=1)
    """The number of layers to train, from the top; those below stay as they are, and run once (`cache.trunk`)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) (Kalajdzievski 2023)."""
    use_dora: bool = False
    """Train magnitudes beside directions (Liu et al. 2024)."""

    label: ClassVar[str] = "LoRA"
    default_learning_rate: ClassVar[float] = 5e-4
    flags: ClassVar[Mapping[str, str]] = {
        "--rank": "rank",
        "--alpha": "alpha",
        "--dropout": "dropout",
        "--target": "targets",
        "--train-top-layers": "top_layers",
    }
    shown: ClassVar[Mapping[str, str]] = {"rank": "r", "top_layers": "top"}
    is_adapter: ClassVar[bool] = True

    def prepare(self, model: "nn.Module", start: "Start", dtype: "torch.dtype") -> "nn.Module":
        """Freeze all weights and wrap the model with adapters; only they and the head train.

        Raises:
            ModelError: no module matches the targets, or PEFT puts no adapter beside them.
        """
        return add_adapters(model.requires_grad_(False), self, start, dtype)

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.layers is not None and self.top_layers is not None:
            raise ValueError("layers and top_layers both say which layers are adapted; leave one of them out")
        return self

    @property
    def leaves_trunk(self) -> bool:
        """Return whether layers are frozen below those that are adapted."""
        return self.top_layers is not None or bool(self.layers and min(self.layers) > 0)

    def adapts(self, layer: int, num_layers: int) -> bool:
        """Return whether a layer gets adapters."""
        if self.top_layers is not None:
            return layer >= num_layers - self.top_layers
        return self.layers is None or layer in self.layers

    def on_layers(self, kept: Sequence[int], num_layers: int) -> Self:
        """Name the layers by their places among those that are kept."""
        if self.top_layers is not None:
            return self.model_copy(update={"top_layers": sum(self.adapts(one, num_layers) for one in kept)})
        if self.layers is None:
            return self
        places = tuple(place for place, number in enumerate(kept) if number in self.layers)
        return self.model_copy(update={"layers": places})

    def cheaper(self) -> Sequence[dict[str, Any]]:
        """Return the same adapters over weights in 4 bits."""
        return ({"method.name": "qlora"},)

    def save(self, model: "nn.Module", folder: Path, weights: "Named", dtype: "torch.dtype") -> None:
        """Write adapters and head as PEFT does, as safetensors."""
        from ftkit.models.saving.dtypes import as_stored

        saver: Any = model
        state = dict(as_stored(weights, dtype))
        saver.save_pretrained(str(folder), state_dict=state, safe_serialization=True, save_embedding_layers=False)

    def loading_code(self, card: "Card") -> list[str]:
        """Return a program for PEFT, which keeps the adapters alone: labels and pad token are given."""
        return card.program("peft", "AutoPeftModelFor", _label_arguments(card), _quiet(card))


class Qlora(Lora):
    """LoRA over frozen weights in 4 bits (Dettmers et al. 2023)."""

    name: Literal["qlora"] = "qlora"  # type: ignore[assignment]  # the tag is what tells the choices apart
    quantization: Literal["nf4", "fp4"] = "nf4"
    """The 4-bit type."""
    double_quantization: bool = True
    """Quantize the quantization constants too."""

    label: ClassVar[str] = "QLoRA"
    cpu_micro_batch_tokens: ClassVar[int] = 1024
    """Each micro-batch unpacks every weight, in the forward and in the backward."""

    def prepare(self, model: "nn.Module", start: "Start", dtype: "torch.dtype") -> "nn.Module":
        """Pack all linear layers but those that make logits, and all experts, in 4 bits; then as LoRA.

        Raises:
            ModelError: the model has no linear layer, or as LoRA.
        """
        from ftkit.models import bnb, experts
        from ftkit.models.kernels.packed_linear import forget_weights
        from ftkit.models.sources.weights import copy_small
        from ftkit.models.structure.heads import output_names

        packing = bnb.Packing(self.quantization, self.double_quantization, dtype)
        keep = (*start.head, *output_names(model))
        copy_small(model)
        bnb.quantize(model.requires_grad_(False), packing, keep)
        forget_weights(model)
        experts.pack_experts(model, packing, keep)
        return super().prepare(model, start, dtype)

    def cheaper(self) -> Sequence[dict[str, Any]]:
        """Return nothing: the weights are as small as they get."""
        return ()

    def loading_code(self, card: "Card") -> list[str]:
        """Return a program that packs the frozen weights as they were packed in training."""
        arguments = [*_label_arguments(card), self._quantization(card)]
        imports = ["from transformers import BitsAndBytesConfig", *_quiet(card)]
        loaded = [*self._experts(card), *(_KEEP_LAYOUT if self.use_dora else ())]
        if card.experts:
            imports.insert(0, "from bitsandbytes.nn.parametrize import replace_parameter_4bit")
        return card.program("peft", "AutoPeftModelFor", arguments, imports, loaded)

    def _experts(self, card: "Card") -> list[str]:
        """Return lines that pack experts, which transformers loads in 16 bits."""
        if not card.experts:
            return []
        settings = f'compress_statistics={self.double_quantization}, quant_type="{self.quantization}"'
        return [
            f"experts = {list(card.experts)}",
            "for module in list(model.modules()):",
            "    for kind, name in experts:",
            "        if type(module).__name__.removeprefix('Parametrized') == kind:",
            f"            replace_parameter_4bit(module, name, {settings})",
        ]

    def _quantization(self, card: "Card") -> str:
        """Return the argument that packs the frozen weights; the head stays whole."""
        adapter = json.loads((card.folder / "adapter_config.json").read_text(encoding="utf-8"))
        settings = [
            "load_in_4bit=True",
            f'bnb_4bit_quant_type="{self.quantization}"',
            f"bnb_4bit_use_double_quant={self.double_quantization}",
            f"bnb_4bit_compute_dtype={card.dtype}",
            f"llm_int8_skip_modules={[*(adapter['modules_to_save'] or []), 'lm_head']}",
        ]
        return f"quantization_config=BitsAndBytesConfig({', '.join(settings)})"


def add_adapters(model: "nn.Module", method: Lora, start: "Start", dtype: "torch.dtype") -> "nn.Module":
    """Wrap a model with LoRA adapters; only they, the head and new rows train.

    Args:
        model: frozen or not, quantized or not; its linear layers are 4-bit, ordinary or Conv1D.
        method: rank, scale, targets.
        start: the head, which trains whole and is saved with the adapters, and new rows of the tables of tokens.
        dtype: what the adapters compute in.

    Returns:
        A PEFT model.

    Raises:
        ModelError: no module matches the targets, or PEFT puts no adapter beside them.
    """
    from ftkit.models import bnb, foreign

    if any(map(foreign.is_packed, model.parameters())):
        bnb.preload()
        with without_values():
            return _adapt(model, method, start, dtype)
    with foreign.without_bitsandbytes():
        return _adapt(model, method, start, dtype)


def without_values() -> AbstractContextManager[None]:
    """Let DoRA read 4-bit weights that have shapes and no values, on `meta` or fake."""
    from ftkit.models import bnb, foreign

    return foreign.dora_reading(bnb.unpack_without_values)


def _adapt(model: "nn.Module", method: Lora, start: "Start", dtype: "torch.dtype") -> "nn.Module":
    from peft import LoraConfig, get_peft_model

    from ftkit.models import foreign
    from ftkit.models.structure.layers import top_layers
    from ftkit.models.structure.targets import choose_targets, shortest_names

    names = dict(model.named_modules())
    layers = method.layers if method.top_layers is None else top_layers(model, method.top_layers)
    chosen = choose_targets(model, method.targets, layers, start.head, foreign.moved_targets(model))
    modules = [name for name in chosen if name in names]
    experts = [name for name in chosen if name not in names]
    if experts and any(map(foreign.is_packed, model.parameters())):
        # It would add the adapters once more in each forward (peft 0.21, ParamWrapper._remove_parametrizations).
        raise ModelError("PEFT has no adapters beside experts in 4 bits; leave experts out, or choose --method lora")
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        lora_dropout=method.dropout,
        target_modules=shortest_names(model, modules),
        target_parameters=experts or None,
        modules_to_save=list(start.head) or None,
        use_rslora=method.use_rslora,
        use_dora=method.use_dora,
        fan_in_fan_out=any(foreign.is_conv1d(model.get_submodule(name)) for name in modules),
        trainable_token_indices=_new_rows(model, start),
    )
    try:
        adapted: nn.Module = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:  # such as modules that the kernels of a model read themselves
        raise ModelError(f"PEFT refuses method.targets: {error}") from error
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    if start.adapter is not None:
        _load(adapted, start.adapter, start.head if start.has_new_head else ())
    return adapted


def _load(model: "nn.Module", adapter: Path, drawn: Sequence[str]) -> None:
    """Load the weights of an adapter, all of them and no others.

    Args:
        model: has adapters; changed in place.
        adapter: the folder that they were saved in.
        drawn: names of modules that are new, and not those of the adapter.

    Raises:
        ModelError: the weights are not those of the adapters that the model has.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    def kept(state: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
        return {name: one for name, one in state.items() if not any(f".{head}." in name for head in drawn)}

    if not (adapter / WEIGHTS).is_file():
        raise ModelError(f"{adapter} has no {WEIGHTS}; give the folder that an adapter was saved in")
    own: Any = get_peft_model_state_dict(model, save_embedding_layers=False)
    ours, theirs = kept(own), kept(load_file(adapter / WEIGHTS))
    others = [name for name in ours.keys() | theirs.keys() if name not in ours or name not in theirs]
    others += [name for name in ours.keys() & theirs.keys() if ours[name].shape != theirs[name].shape]
    if others:
        raise ModelError(
            f"the adapter in {adapter} is not the one that this run would train: {min(others)} and {len(others) - 1} "
            "more weights differ; leave out method.targets and method.layers, and give the data with the same labels "
            "or --set model.new_head=true"
        )
    set_peft_model_state_dict(model, theirs)


def _new_rows(model: "nn.Module", start: "Start") -> dict[str, list[int]] | None:
    """Return the rows that train, by the name of their table: of the embedding, and of logits that are not tied."""
    from ftkit.models.structure.heads import output_names

    if not start.rows:
        return None
    tables: Any = [model.get_input_embeddings(), *map(model.get_submodule, output_names(model))]  # type: ignore[operator]  # transformers'
    names = {module: name for name, module in model.named_modules()}
    is_tied = len(tables) > 1 and tables[0].weight is tables[1].weight
    return {names[table]: list(start.rows) for table in (tables[:1] if is_tied else tables)}


def is_adapted(model: "nn.Module") -> bool:
    """Return whether `add_adapters` made this model."""
    return hasattr(model, "peft_config") and hasattr(model, "base_model")


def unwrapped(model: "nn.Module") -> "nn.Module":
    """Return the model that adapters were added to, or the model itself."""
    base: nn.Module = model.get_base_model() if is_adapted(model) else model  # type: ignore[operator]  # PEFT's
    return base


def _quiet(card: "Card") -> list[str]:
    """Return lines without which transformers warns of the head, which it does not find and PEFT then loads."""
    return (
        [] if card.labels is None else ["from transformers.utils import logging", "", "logging.set_verbosity_error()"]
    )


def _label_arguments(card: "Card") -> list[str]:
    if card.labels is None:
        return []
    given: dict[str, Any] = {
        "id2label": dict(enumerate(card.labels.names)),
        "label2id": {name: number for number, name in enumerate(card.labels.names)},
        "problem_type": PROBLEM_TYPES[card.labels.kind],
        "pad_token_id": card.pad_token_id,
    }
    return [f"{name}={value!r}" for name, value in given.items()]
