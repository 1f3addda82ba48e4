"""Which settings go together: executable rules, each with its reason and its remedy; the docs are made from them."""

from collections.abc import Callable
from dataclasses import dataclass

from ftkit.config.tree import RunConfig
from ftkit.plan.target import Target
from ftkit.plan.zero.share import uses_deepspeed


@dataclass(frozen=True)
class Rule:
    """A combination that is ruled out.

    Attributes:
        what: the combination.
        reason: why it does not work.
        remedy: what to do instead.
        applies: whether a configuration at a target is such a combination.
    """

    what: str
    reason: str
    remedy: str
    applies: Callable[[RunConfig, Target], bool]


RULES = (
    Rule(
        "8-bit or paged AdamW under DeepSpeed",
        "ZeRO shares flat moments out over the ranks; bitsandbytes keeps its own, in blocks",
        "optimizer.name=adamw, or the plain engine",
        lambda config, _: uses_deepspeed(config) and config.optimizer.name != "adamw",
    ),
    Rule(
        "offloading weights without ZeRO-3",
        "only stage 3 partitions weights, and only partitioned weights are offloaded",
        "engine.zero_stage=3",
        lambda config, _: config.engine.offload_parameters != "none" and config.engine.zero_stage != 3,
    ),
    Rule(
        "ZeRO without offload on one device",
        "with one rank there is nothing to partition, and its buckets cost memory",
        "the plain engine, or offload_optimizer=cpu",
        lambda config, target: (
            target.num_devices == 1
            and bool(config.engine.zero_stage)
            and (config.engine.offload_optimizer, config.engine.offload_parameters) == ("none", "none")
        ),
    ),
    Rule(
        "offloading to the host's memory on a CPU",
        "the device's memory is the host's, so nothing is saved, and each update is copied",
        "leave offload out, or offload to nvme",
        lambda config, target: (
            target.device_type == "cpu" and "cpu" in (config.engine.offload_optimizer, config.engine.offload_parameters)
        ),
    ),
    Rule(
        "offloading the optimizer alone where adapters or a head train",
        "their masters and moments are a small part of what is held, and each update is copied",
        "leave offload out, or offload the weights too with ZeRO-3",
        lambda config, _: (
            not config.method.trains_all
            and config.engine.offload_optimizer != "none"
            and config.engine.offload_parameters == "none"
        ),
    ),
    Rule(
        "bf16 on a GPU before Ampere",
        "the hardware does not multiply bf16",
        "model.precision=fp16 or auto",
        lambda config, target: config.model.precision == "bf16" and target.gpu is not None and not target.gpu.has_bf16,
    ),
    Rule(
        "fp16 on a CPU",
        "its matrix products are slower than fp32 by orders of magnitude",
        "model.precision=auto",
        lambda config, target: config.model.precision == "fp16" and target.device_type == "cpu",
    ),
)


def broken_rule(config: RunConfig, target: Target) -> Rule | None:
    """Return the first rule that a configuration breaks, or None."""
    return next((rule for rule in RULES if rule.applies(config, target)), None)
