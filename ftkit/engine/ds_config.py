"""RunConfig and a template in, the dictionary that DeepSpeed receives out. Pure: imports no deepspeed, reads one file.

A template holds what is DeepSpeed's alone: stage, offload, overlap, what a user tunes by hand. Batch, precision and
clipping come from the RunConfig, so each key has one owner.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.config.engine import EngineConfig
from ftkit.config.tree import RunConfig
from ftkit.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import nn

_OWNERS = {
    "train_batch_size": "batch.global_batch_size",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_size or batch.micro_batch_tokens",
    "gradient_accumulation_steps": "batch.micro_batch_size or batch.micro_batch_tokens",
    "fp16": "model.precision",
    "bf16": "model.precision",
    "bfloat16": "model.precision",
    "amp": "model.precision",
    "data_types": "model.precision",
    "communication_data_type": "model.precision",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "the optimizer section",
    "scheduler": "the schedule section",
    "activation_checkpointing": "model.recompute",
    "steps_per_print": "training.log_every",
}
_BUCKET_MINIMUM = 2**16
_BUCKET_MAXIMUM = 2**26
_PREFETCH_MAXIMUM = 2**24


@dataclass(frozen=True)
class Sizes:
    """The sizes that buckets are made for.

    Attributes:
        num_trainable_parameters: elements that train.
        largest_trainable: elements of the largest tensor that trains.
        largest_layer: elements of the largest layer, trained or frozen (for ZeRO-3's windows); of the largest tensor
            where there are no layers.
    """

    num_trainable_parameters: int
    largest_trainable: int
    largest_layer: int


def measure_sizes(model: "nn.Module") -> Sizes:
    """Return what DeepSpeed's buckets are sized to.

    Args:
        model: before it is partitioned.

    Returns:
        Element counts.
    """
    from torch import nn

    trainable = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    blocks = [module for stack in model.modules() if isinstance(stack, nn.ModuleList) for module in stack]
    layers = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    alone = [parameter.numel() for parameter in model.parameters()]
    return Sizes(sum(trainable), max(trainable), max(layers or alone))


def template_name(engine: EngineConfig) -> str:
    """Return the name of the template in ds_configs/ that turns on what an engine section asks for."""
    stage = engine.default_zero_stage if engine.zero_stage is None else engine.zero_stage
    optimizer, parameters = engine.offload_optimizer, engine.offload_parameters
    match (optimizer, parameters):
        case ("none", "none"):
            suffix = ""
        case ("cpu", "cpu"):
            suffix = "_offload"
        case ("nvme", "nvme"):
            suffix = "_nvme"
        case ("cpu", "none"):
            suffix = "_offload_optimizer"
        case ("none", "cpu"):
            suffix = "_offload_parameters"
        case ("nvme", "none"):
            suffix = "_nvme_optimizer"
        case ("none", "nvme"):
            suffix = "_nvme_parameters"
        case _:  # the rulebook refuses two different places
            raise AssertionError(f"no template for {optimizer} with {parameters}")
    return f"zero{stage}{suffix}"


def templates_folder() -> Path:
    """Return the folder of the shipped templates: inside the installed package, or beside it in a checkout."""
    package = Path(str(resources.files("ftkit")))
    return next(folder for folder in (package / "ds_configs", package.parent / "ds_configs") if folder.is_dir())


def read_template(engine: EngineConfig) -> dict[str, Any]:
    """Read the template that an engine section names or implies, and check that it keeps to what is its own.

    Args:
        engine: the engine section.

    Returns:
        The template.

    Raises:
        ConfigError: no such file, no JSON, a key that has another owner, or an `"auto"`.
    """
    name = engine.ds_config or template_name(engine)
    path = Path(name) if name.endswith(".json") else templates_folder() / f"{name}.json"
    if not path.is_file():
        shipped = sorted(file.stem for file in templates_folder().glob("*.json"))
        raise ConfigError(f"no DeepSpeed template {name!r}; {nearest(name, shipped)}, or the path of a .json file")
    try:
        template = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(template, dict) or not isinstance(template.get("zero_optimization", {}), dict):
        raise ConfigError(f"{path} must hold an object with an object 'zero_optimization'; see ds_configs/zero2.json")
    for key in template.keys() & _OWNERS.keys():
        raise ConfigError(f"{path} sets {key!r}, which belongs to {_OWNERS[key]}; take it out of the template")
    if (auto := _find_auto(template)) is not None:
        raise ConfigError(f'{path} sets {auto!r} to "auto"; write a value, or take the key out to have it computed')
    if template.get("zero_optimization", {}).get("stage", 0) not in (1, 2, 3):
        raise ConfigError(
            f"{path} sets no ZeRO stage of 1, 2 or 3; stage 0 is the plain engine: leave the template out"
        )
    _agree(engine, template["zero_optimization"], path)
    return template


def deepspeed_dict(
    template: Mapping[str, Any], config: RunConfig, precision: str, world_size: int, device_type: str, sizes: Sizes
) -> dict[str, Any]:
    """Return the dictionary that `deepspeed.initialize` receives.

    Args:
        template: what `read_template` returned.
        config: the run.
        precision: `fp16`, `bf16` or `fp32`, resolved.
        world_size: ranks.
        device_type: `cuda`, `cpu`, ...; memory is pinned for a device only.
        sizes: what the buckets are sized to.

    Returns:
        A complete DeepSpeed configuration.
    """
    result = copy.deepcopy(dict(template))
    zero = result["zero_optimization"]
    _size_buckets(zero, sizes)
    for key in ("offload_optimizer", "offload_param"):
        if key in zero:
            zero[key]["pin_memory"] = zero[key].get("pin_memory", True) and device_type != "cpu"
            if zero[key]["device"] == "nvme":
                zero[key]["nvme_path"] = config.engine.nvme_path
    result |= {
        # The cut is ours and differs from step to step: boundaries are set by hand, and any number above one tells
        # DeepSpeed to keep gradient sums between micro-batches (stage_1_and_2.py, async_accumulate_grad_in_cpu).
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 2,
        "train_batch_size": 2 * world_size,
        "gradient_clipping": config.optimizer.max_grad_norm or 0.0,
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "steps_per_print": 2**31 - 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if precision != "fp32":
        result[precision] = {"enabled": True}
    if precision == "fp16":
        # The plain engine's scaler has the same numbers, so that both skip the same steps.
        result["fp16"] |= {"initial_scale_power": 12, "loss_scale_window": 2000, "hysteresis": 1, "min_loss_scale": 1}
    return result


def _size_buckets(zero: dict[str, Any], sizes: Sizes) -> None:
    """Fit the buckets to what trains, where the template leaves them out.

    ZeRO allocates a bucket whole, whatever the number of trainable parameters: the usual 5e8 elements cost a LoRA of
    ten million parameters 1 to 2 GB (deepspeed/runtime/zero/stage_1_and_2.py, ipg buffers).
    """
    wanted = min(max(sizes.num_trainable_parameters, _BUCKET_MINIMUM), _BUCKET_MAXIMUM)
    bucket = max(wanted, sizes.largest_trainable)
    zero.setdefault("reduce_bucket_size", bucket)
    if zero["stage"] < 3:
        zero.setdefault("allgather_bucket_size", bucket + bucket % 2)
        return
    zero.setdefault("stage3_prefetch_bucket_size", min(sizes.largest_layer, _PREFETCH_MAXIMUM))
    zero.setdefault("stage3_param_persistence_threshold", 0)
    zero.setdefault("stage3_max_live_parameters", 2 * sizes.largest_layer)
    # A layer that is computed again comes back in its backward: a forward and a backward of it away at most.
    zero.setdefault("stage3_max_reuse_distance", 2 * sizes.largest_layer)


def _find_auto(tree: dict[str, Any], path: str = "") -> str | None:
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        if value == "auto":
            return here
        if isinstance(value, dict) and (found := _find_auto(value, here)) is not None:
            return found
    return None


def _agree(engine: EngineConfig, zero: dict[str, Any], path: Path) -> None:
    stage = zero["stage"]
    if engine.zero_stage is not None and engine.zero_stage != stage:
        raise ConfigError(
            f"{path} sets ZeRO stage {stage}, but engine.zero_stage={engine.zero_stage}; give one of them"
        )
    for section, field in (("offload_optimizer", "offload_optimizer"), ("offload_param", "offload_parameters")):
        device = zero.get(section, {}).get("device", "none")
        asked = getattr(engine, field)
        if asked not in ("none", device):
            raise ConfigError(f"{path} sets {section} to {device!r}, but engine.{field}={asked}; give one of them")
        if device == "nvme" and engine.nvme_path is None:
            raise ConfigError(f"{path} offloads to nvme; name a folder on a fast disk: --set engine.nvme_path=FOLDER")
