"""Values into words, and what a configuration is called."""

from pathlib import Path

from pydantic import ValidationError

from ftkit.config.methods import methods
from ftkit.config.recompute import OLD_SHARE, Recompute
from ftkit.records.schema import RunLine
from ftkit.report.collect import Run
from ftkit.units import format_bytes, format_count, format_seconds

Value = str | int | float | None


def text(value: Value) -> str:
    """Return a text as it is."""
    return str(value)


def place(value: Value) -> str:
    """Return a name, or the last two parts of a path from the root."""
    return "/".join(Path(str(value)).parts[-2:]) if Path(str(value)).is_absolute() else str(value)


def size(value: Value) -> str:
    """Return bytes to three digits, such as `1.50 GiB` or `320 MiB`."""
    number, unit = format_bytes(float(value or 0)).split()
    digits = 2 - min(2, len(number.partition(".")[0].lstrip("-")) - 1)
    return f"{float(number):.{digits if unit != 'B' else 0}f} {unit}"


def count(value: Value) -> str:
    """Return a count such as `22.7 M`."""
    return format_count(float(value or 0))


def duration(value: Value) -> str:
    """Return seconds such as `310 ms` or `3 min 20 s`."""
    seconds = float(value or 0)
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else format_seconds(seconds)


def energy(value: Value) -> str:
    """Return joules as watt-hours, to three digits."""
    return f"{float(value or 0) / 3600:.3g} Wh"


def rate(value: Value) -> str:
    """Return something per second: whole from 100 on, three digits below."""
    per_second = float(value or 0)
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def percent(value: Value) -> str:
    """Return a share such as `41.3 %`."""
    return f"{float(value or 0) * 100:.1f} %"


def signed_percent(value: Value) -> str:
    """Return an error such as `+0.42 %`; nothing but an exact zero is rounded to one."""
    share = float(value or 0) * 100
    return "0 %" if share == 0 else f"{share:+.2f} %" if abs(share) >= 0.005 else "< 0.01 %"


def score(value: Value) -> str:
    """Return a score or a loss to three digits."""
    return f"{float(value or 0):.3f}"


def figure(value: Value) -> str:
    """Return a figure in the data's own units to four digits."""
    return f"{float(value or 0):.4g}"


def whole(value: Value) -> str:
    """Return a whole number with its thousands parted."""
    return f"{value:,}"


def method(run: Run) -> str:
    """Return the method with what it is made of, such as `LoRA r=8`."""
    section = methods().get(run.setting("method.name"))
    figures = {short: run.setting(f"method.{field}") for field, short in (section.shown if section else {}).items()}
    return " ".join([method_name(run), *(f"{short}={value}" for short, value in figures.items() if value)])


def method_name(run: Run) -> str:
    """Return the method alone, such as `LoRA`."""
    name = str(run.setting("method.name") or "unknown")
    return methods()[name].label if name in methods() else name


def device(run: Run) -> Value:
    """Return what computed; None where a run failed before it knew."""
    name = run.record.run.device
    return None if name == "unknown" else name


def engine(run: Run) -> Value:
    """Return how the run was distributed, see `distribution`; None of a baseline."""
    return None if run.is_baseline else distribution(run.record.run)


def distribution(line: RunLine) -> str:
    """Return how a run is distributed; see `sharing`.

    Args:
        line: the first of a record; one that does not say its stage has it in its configuration, unless a template
            decided it.
    """
    section = line.config.get("engine", {})
    stage = section.get("zero_stage") if line.zero_stage is None else line.zero_stage
    if line.engine == "deepspeed" and stage is None and section.get("ds_config"):
        return f"DeepSpeed by {section['ds_config']}"
    places = [getattr(line, key) or section.get(key) for key in ("offload_optimizer", "offload_parameters")]
    return sharing(line.engine, line.world_size, 2 if stage is None else stage, *places)


def sharing(
    engine: str, world_size: int, zero_stage: int, offload_optimizer: str | None, offload_parameters: str | None
) -> str:
    """Return how a run is shared out over its devices, such as `ZeRO-3, parameters on cpu`.

    Args:
        engine: `plain`, `deepspeed` or `unknown`.
        world_size: ranks.
        zero_stage: what ZeRO partitions.
        offload_optimizer: where the optimizer's state lives; `none` or None: on the device.
        offload_parameters: where the weights live.
    """
    if engine != "deepspeed":
        return f"{engine} (DDP)" if engine == "plain" and world_size > 1 else engine
    parts = [f"ZeRO-{zero_stage}"]
    for what, place in (("optimizer", offload_optimizer), ("parameters", offload_parameters)):
        if place not in (None, "none"):
            parts.append(f"{what} on {place}")
    return ", ".join(parts)


def recompute(run: Run) -> Value:
    """Return what layers recompute, and whether what they keep waits on the host.

    One word stands for all layers, or the share of each level, such as `50 % layer`.
    """
    share, asked = run.setting(OLD_SHARE), run.setting("model.recompute")
    if asked is None and share is None:
        return None
    try:
        found = Recompute.model_validate({"layer": share} if asked is None else asked).as_written()
    except ValidationError:  # a record of a configuration that was refused
        return str(asked if share is None else share)
    shares = {found: 1.0} if isinstance(found, str) else found
    words = ", ".join(level if part == 1 else f"{part * 100:.0f} % {level}" for level, part in shares.items())
    return f"{words}, kept on the host" if run.setting("model.offload_activations") else words


def cut(run: Run) -> Value:
    """Return the micro-batch: `8 sequences`, `4096 tokens`, or None for the default cut."""
    sequences, tokens = run.setting("batch.micro_batch_size"), run.setting("batch.micro_batch_tokens")
    if sequences:
        return f"{sequences} seq"
    return f"{tokens} tok" if tokens else None
