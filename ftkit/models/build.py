"""From a source to a module that is ready to train: load or build empty, quantize, adapt, checkpoint activations."""

import math
from typing import Any, cast

import torch
from torch import nn
from torch.utils import checkpoint as activation_checkpoint

from ftkit.config.tree import ModelConfig, RunConfig, Task
from ftkit.errors import ConfigError, ModelError
from ftkit.models.heads import classifies, find_head
from ftkit.models.methods import method_of
from ftkit.models.methods.lora import is_adapted
from ftkit.models.source import Source, explained_loading

_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
"""As transformers' models call the embedding of absolute positions (BERT and kin, OPT and BART, GPT-2)."""


def build_model(config: RunConfig, source: Source, architecture: Any, dtype: torch.dtype) -> nn.Module:
    """Load the weights and make of them what the method trains.

    Args:
        config: the run.
        source: where the weights are.
        architecture: what `load_config` returned.
        dtype: what weights and activations compute in.

    Returns:
        A module on the CPU, in evaluation mode, in which exactly what the method trains requires gradients.

    Raises:
        ModelError: the weights cannot be loaded, or the model is not for this task or method.
    """
    torch.manual_seed(config.training.seed)
    model, missing = _load(config, source, architecture, dtype)
    return prepare_model(config, model, dtype, find_head(model, missing))


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
    with torch.device("meta"):
        return prepare_model(config, model, dtype, find_head(model, ()))


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
    kind = _auto_class(config.task)
    try:
        with torch.device("meta"):
            model: nn.Module = kind.from_config(architecture, dtype=dtype, **_attention(config.model))
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ModelError(
            f"transformers has no {architecture.model_type} model for {config.task}; choose another model or task"
        ) from error
    return model.eval()


def prepare_model(config: RunConfig, model: nn.Module, dtype: torch.dtype, head: tuple[str, ...]) -> nn.Module:
    """Freeze, quantize, adapt and checkpoint a loaded model, as its configuration says.

    Args:
        config: the run.
        model: a transformers model.
        dtype: what it computes in.
        head: the names of the modules that are new.

    Returns:
        The module to train: the same one, or a PEFT model around it.

    Raises:
        ModelError: the method does not fit the model.
    """
    set_checkpointing(model, config.model.gradient_checkpointing)
    return method_of(config).prepare(model, head, dtype)


def set_checkpointing(model: nn.Module, share: float) -> None:
    """Let a share of the layers, evenly spread, recompute their activations in the backward pass.

    Non-reentrant, so that it works over frozen embeddings.

    Args:
        model: a transformers model.
        share: from 0 (none) to 1 (all).

    Raises:
        ModelError: the model has no layers that can.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if share > 0 and not layers:
        raise ModelError(f"{type(model).__name__} cannot checkpoint its layers; set model.gradient_checkpointing to 0")
    for layer, recomputes in zip(cast(list[Any], layers), checkpointed_layers(len(layers), share), strict=True):
        layer.gradient_checkpointing = recomputes
        layer._gradient_checkpointing_func = _checkpoint


def checkpointed_layers(num_layers: int, share: float) -> list[bool]:
    """Return for each layer whether it recomputes: a share of them, evenly spread."""
    return [math.floor((number + 1) * share) > math.floor(number * share) for number in range(num_layers)]


def check_positions(model: nn.Module, longest: int) -> None:
    """Refuse sequences longer than a model's table of positions; rotary and relative positions have no end.

    Args:
        model: a transformers model.
        longest: tokens of the longest sequence.

    Raises:
        ConfigError: naming the most that the model takes.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in _POSITION_TABLES:
            # RoBERTa and OPT count from behind the padding token.
            first = module.padding_idx + 1 if module.padding_idx is not None else getattr(module, "offset", 0)
            if longest > module.num_embeddings - first:
                raise ConfigError(
                    f"the longest sequence has {longest} tokens, and the model has {module.num_embeddings - first} "
                    f"positions; try --max-length {module.num_embeddings - first}"
                )


def set_training(model: nn.Module, is_training: bool) -> None:
    """Switch dropout: a frozen trunk without adapters stays in evaluation mode, but for the new modules inside it.

    Args:
        model: what `build_model` returned.
        is_training: training or evaluation mode.
    """
    model.train(is_training)
    if is_training and not is_adapted(model):
        for child in model.children():
            if all(parameter.requires_grad for parameter in child.parameters()):
                continue
            child.eval()
            for module in child.modules():
                own = list(module.parameters())
                if own and all(parameter.requires_grad for parameter in own):
                    module.train()


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights, those packed in 4 bits counted one by one."""
    return sum(_num_elements(parameter) for parameter in model.parameters())


def _num_elements(parameter: nn.Parameter) -> int:
    if type(parameter).__name__ == "Params4bit":
        return parameter.numel() * parameter.element_size() * 2
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _load(config: RunConfig, source: Source, architecture: Any, dtype: torch.dtype) -> tuple[nn.Module, set[str]]:
    with explained_loading(source, f"weights for {config.task}"):
        model, info = _auto_class(config.task).from_pretrained(
            source.name,
            config=architecture,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            use_safetensors=True,
            **source.arguments,
            **_attention(config.model),
        )
    mismatched = {entry[0] for entry in info["mismatched_keys"]}
    missing = set(info["missing_keys"]) | mismatched
    if missing and not classifies(model):
        raise ModelError(
            f"{source.name} lacks {len(missing)} weights of {type(model).__name__} ({min(missing)}, ...); "
            "it is not a model for causal-lm"
        )
    trunk = [name for name, _ in model.named_parameters() if name.startswith(f"{model.base_model_prefix}.")]
    if trunk and all(name in missing for name in trunk):
        raise ModelError(
            f"{source.name} holds no weight of {type(model).__name__}; is its config.json of another model?"
        )
    return model.eval(), missing


def _auto_class(task: Task) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if task == "sequence-classification" else AutoModelForCausalLM


def _attention(config: ModelConfig) -> dict[str, str]:
    return {} if config.attention == "auto" else {"attn_implementation": config.attention}


def _checkpoint(function: Any, *arguments: Any, **keywords: Any) -> Any:
    return activation_checkpoint.checkpoint(function, *arguments, use_reentrant=False, **keywords)
