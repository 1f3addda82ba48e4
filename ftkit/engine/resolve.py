"""Settle every `auto` of a configuration, once, for the devices that it runs on.

Nobody else decides whether a run is DeepSpeed's, which ZeRO stage it has, or what a precision is as a dtype.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch

from ftkit.config.engine import EngineConfig, Offload
from ftkit.config.precision import TORCH_NAMES, Precision, SettledPrecision
from ftkit.config.rules import Facts, Force, broken_rules
from ftkit.config.tree import BatchConfig, RunConfig
from ftkit.engine.ds_config import Sizes, deepspeed_dict, read_template
from ftkit.errors import ConfigError, DeviceError
from ftkit.machine.process import Launcher, ProcessContext, has_bf16
from ftkit.models.sources.adapters import with_adapter

DTYPES: dict[str, torch.dtype] = {precision: getattr(torch, name) for precision, name in TORCH_NAMES.items()}
"""A settled precision to its dtype."""


class EngineKind(StrEnum):
    """The two ways to spread a run over devices."""

    PLAIN = "plain"
    """torch, with weights whole on every device."""
    DEEPSPEED = "deepspeed"
    """ZeRO stages 1 to 3, with offload."""


@dataclass(frozen=True)
class Devices:
    """The devices of a job, as far as they decide how a configuration runs.

    Attributes:
        device_type: `cuda`, `cpu` or another.
        has_bf16: whether they multiply bf16 in hardware.
        world_size: ranks, one on each device.
        launcher: what starts the ranks; DeepSpeed's own brings DeepSpeed with it.
    """

    device_type: str
    has_bf16: bool
    world_size: int = 1
    launcher: Launcher = "none"

    @classmethod
    def of(cls, process: ProcessContext) -> "Devices":
        """Return the devices of the job that a process belongs to."""
        device = process.device
        return cls(device.type, has_bf16(device), process.world_size, process.launcher)


@dataclass(frozen=True)
class ResolvedRun:
    """A configuration with every `auto` settled.

    Attributes:
        config: the run; its learning rate, its precision and its cut are those that are used. A cut that the planner
            is to choose is still `auto`: see `cut_by`.
        devices: what it runs on.
        engine: what spreads it over them.
        zero_stage: what is partitioned; 0 under the plain engine.
        offload_optimizer: where the optimizer's state lives.
        offload_parameters: where the weights live.
        precision: `fp16`, `bf16` or `fp32`.
        template: of DeepSpeed; empty under the plain engine.
    """

    config: RunConfig
    devices: Devices
    engine: EngineKind
    zero_stage: int
    offload_optimizer: Offload
    offload_parameters: Offload
    precision: SettledPrecision
    template: Mapping[str, Any] = field(repr=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that weights and activations compute in."""
        return DTYPES[self.precision]

    @property
    def partitions_weights(self) -> bool:
        """Whether weights are gathered when their module runs, and released after it."""
        return self.zero_stage == 3

    @property
    def hidden_dtype(self) -> torch.dtype:
        """The dtype in which the cache keeps what a frozen trunk makes."""
        kept = self.config.cache.dtype
        if kept == "int8":
            return torch.int8
        return self.dtype if kept == "auto" else DTYPES[kept]

    def may_cache(self, num_passes: float) -> bool:
        """Return whether the settings let a frozen trunk run once, where the model has one.

        Args:
            num_passes: over the training split.
        """
        if self.config.cache.trunk != "auto":
            return self.config.cache.trunk == "on"
        if self.config.method.fits_at_once:
            return True
        is_spread = self.partitions_weights and self.devices.device_type != "cpu"  # it may fit on no device whole
        return num_passes > 1 and not is_spread

    @property
    def facts(self) -> Facts:
        """The facts that the rulebook looks at."""
        config = self.config
        return Facts(
            uses_deepspeed=self.engine is EngineKind.DEEPSPEED,
            zero_stage=self.zero_stage,
            offload_optimizer=self.offload_optimizer,
            offload_parameters=self.offload_parameters,
            stream_layers=config.engine.stream_layers,
            streams_together=config.engine.stream_micro_batches != 1,
            streams_head=config.engine.stream_head,
            nvme_path=config.engine.nvme_path,
            has_template=config.engine.ds_config is not None,
            optimizer=config.optimizer.name,
            trains_all=config.method.trains_all,
            precision=self.precision,
            device_type=self.devices.device_type,
            has_bf16=self.devices.has_bf16,
            world_size=self.devices.world_size,
            uses_dora=bool(getattr(config.method, "use_dora", False)),
            packs_weights=hasattr(config.method, "quantization"),
            tiles_mlps=config.model.mlp_tile_tokens is not None,
            recomputes_cheaply=config.model.recompute.cheap > 0,
            offloads_activations=config.model.offload_activations,
            is_lean=config.model.lean,
            is_fitted=config.engine.fit,
            is_planned=config.training.plan_first,
        )

    def cut_by(self, batch: BatchConfig) -> "ResolvedRun":
        """Return the run with the cut that the planner has chosen."""
        return replace(self, config=self.config.model_copy(update={"batch": batch}))

    def deepspeed_dict(self, sizes: Sizes) -> dict[str, Any]:
        """Return the dictionary that `deepspeed.initialize` receives; the planner computes from the same one.

        Args:
            sizes: what the buckets are sized to.
        """
        devices = self.devices
        return deepspeed_dict(
            self.template, self.config, self.precision, devices.world_size, devices.device_type, sizes
        )


def resolve(config: RunConfig, devices: Devices) -> ResolvedRun:
    """Settle a configuration for the devices that it runs on.

    Args:
        config: the run as a user asked for it, or an earlier result of this.
        devices: this machine's, or those of a plan.

    Returns:
        The run with every `auto` settled, but for a cut that the planner is to choose.

    Raises:
        ConfigError: the settings do not go together, or the DeepSpeed template is not usable.
        DeviceError: the devices cannot compute in the precision.
        ModelError: the run goes on from an adapter that its method does not train.
    """
    config = with_adapter(config)
    engine = _engine(config.engine, devices.launcher)
    template = read_template(config.engine) if engine is EngineKind.DEEPSPEED else {}
    zero = template.get("zero_optimization", {"stage": 0})
    precision = _precision(config.model.precision, devices)
    model = config.model.model_copy(update={"precision": precision})
    if config.engine.stream_layers != "none":
        model = model.model_copy(update={"recompute": model.recompute.without_none()})
    batch = config.batch.one_at_a_time() if model.padding == "none" else config.batch
    run = ResolvedRun(
        config=config.model_copy(update={"batch": batch, "model": model}).settled(devices.device_type),
        devices=devices,
        engine=engine,
        zero_stage=zero["stage"],
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none"),
        offload_parameters=zero.get("offload_param", {}).get("device", "none"),
        precision=precision,
        template=template,
    )
    if config.method.fits_at_once and config.cache.trunk == "off":
        raise ConfigError("method.head=logistic solves for the head from the cache; leave out --trunk-cache off")
    if config.method.fits_at_once and config.data.long_texts == "windows":
        raise ConfigError("method.head=logistic fits one vector a text; leave out --head, or data.long_texts=windows")
    for rule in broken_rules(run.facts, Force.REFUSED):
        raise DeviceError(rule.sentence) if rule.is_of_the_device else ConfigError(rule.sentence)
    return run


def _engine(section: EngineConfig, launcher: Launcher) -> EngineKind:
    """Return the engine: the one that is named, else DeepSpeed where it is asked for or started by its launcher."""
    if section.name != "auto":
        return EngineKind(section.name)
    is_started = launcher == "deepspeed" and section.zero_stage != 0
    return EngineKind.DEEPSPEED if section.asks_for_zero or is_started else EngineKind.PLAIN


def _precision(asked: Precision, devices: Devices) -> SettledPrecision:
    """Return the precision: `auto` is bf16 where the hardware multiplies it, else fp16 on a GPU and fp32 on a CPU."""
    if asked != "auto":
        return asked
    if devices.has_bf16:
        return "bf16"
    return "fp32" if devices.device_type == "cpu" else "fp16"
