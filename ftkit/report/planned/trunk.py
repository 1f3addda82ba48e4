"""Words for frozen layers that run once, before the first step."""

from ftkit.records.trunk import TrunkPlan
from ftkit.units import format_bytes, format_seconds

_UNKNOWN = "give --samples, the number of training sequences"


def trunk_rows(trunk: TrunkPlan | None) -> list[tuple[str, str]]:
    """Return what frozen layers take that run once, and what the steps gain, as names and texts.

    Args:
        trunk: what the plan says; None: no layer runs once.

    Returns:
        Rows of a plan.
    """
    if trunk is None:
        return []
    size = _UNKNOWN if trunk.num_bytes is None else f"{format_bytes(trunk.num_bytes)} on the disk"
    step = f"{format_bytes(trunk.step_peak_bytes)} in the steps"
    if trunk.is_done:
        return [("frozen layers", f"not run: all is in the cache, {size}"), ("  live at the peak", step)]
    time = _UNKNOWN if trunk.seconds is None else f"{format_seconds(trunk.seconds)}, at best"
    return [
        ("frozen layers", f"run once ({time}), {_pays(trunk)}"),
        ("  kept in the cache", size),
        ("  live at the peak", f"{format_bytes(trunk.pass_peak_bytes)} while they run, {step} after that"),
    ]


def trunk_line(trunk: TrunkPlan) -> str:
    """Return the same as one sentence."""
    step = f"the steps need {format_bytes(trunk.step_peak_bytes)} of live tensors"
    if trunk.is_done:
        return f"frozen layers: all is in the cache; {step}"
    time = "" if trunk.seconds is None else f" for about {format_seconds(trunk.seconds)}, at best"
    size = "" if trunk.num_bytes is None else f", {format_bytes(trunk.num_bytes)} on the disk"
    return f"frozen layers run once{time}{size}, {_pays(trunk)}; {step}, the pass {format_bytes(trunk.pass_peak_bytes)}"


def _pays(trunk: TrunkPlan) -> str:
    if trunk.pays_from_epochs is None:
        return "which saves no time"
    return f"which pays off with {trunk.pays_from_epochs:.2g} or more epochs"
