"""The flags of the command line, and the keys of the configuration that they fill."""

from typing import Any

from ftkit.config.methods import MethodSection, methods
from ftkit.config.recompute import OLD_SHARE

KEYS = {
    "--model": "model.name",
    "--dataset": "data.dataset",
    "--text-column": "data.text_column",
    "--text-pair-column": "data.text_pair_column",
    "--label-column": "data.label_column",
    "--prompt-column": "data.prompt_column",
    "--completion-column": "data.completion_column",
    "--prompt-template": "data.prompt_template",
    "--group-column": "data.group_column",
    "--max-length": "data.max_length",
    "--global-batch-size": "batch.global_batch_size",
    "--micro-batch-size": "batch.micro_batch_size",
    "--micro-batch-tokens": "batch.micro_batch_tokens",
    "--epochs": "training.epochs",
    "--max-steps": "training.max_steps",
    "--learning-rate": "optimizer.learning_rate",
    "--optimizer": "optimizer.name",
    "--schedule": "schedule.name",
    "--warmup-ratio": "schedule.warmup_ratio",
    "--warmup-steps": "schedule.warmup_steps",
    "--precision": "model.precision",
    "--engine": "engine.name",
    "--zero-stage": "engine.zero_stage",
    "--offload-optimizer": "engine.offload_optimizer",
    "--offload-parameters": "engine.offload_parameters",
    "--ds-config": "engine.ds_config",
    "--eval-every": "training.eval_every",
    "--early-stopping-patience": "training.early_stopping_patience",
    "--trunk-cache": "cache.trunk",
    "--cache-limit": "cache.limit",
    "--seed": "training.seed",
    "--output": "output.folder",
}
"""Those that are not a method's, in the order of the help."""
_OTHERS = {"--recompute": "model.recompute", "--gradient-checkpointing": OLD_SHARE}


def method_flags() -> dict[str, tuple[type[MethodSection], str]]:
    """Return the flags of all methods, with the first that has each of them and the field that it fills."""
    found: dict[str, tuple[type[MethodSection], str]] = {}
    for section in methods().values():
        for flag, field in section.flags.items():
            found.setdefault(flag, (section, field))
    return found


def short_names() -> dict[str, str]:
    """Return the names of flags without their dashes, and the keys that they fill."""
    keys = KEYS | {flag: f"method.{field}" for flag, (_, field) in method_flags().items()} | _OTHERS
    return {flag.removeprefix("--"): key for flag, key in keys.items()}


def as_flag(key: str, value: Any) -> str:
    """Return a key and its value as a flag: one of its own where there is one, since that wins over `--set`.

    Args:
        key: dotted.
        value: what it is to be.
    """
    name = next((name for name, filled in ({"method": "method.name"} | short_names()).items() if filled == key), None)
    if name is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        return f"--set {key}={_as_yaml(value)}"
    return f"--{name} {value}"


def _as_yaml(value: Any) -> str:
    """Return a value as `--set` reads it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
