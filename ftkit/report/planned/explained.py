"""Words for what a plan rests on."""

from collections.abc import Iterable, Sequence
from math import prod

from ftkit.records.explained import Attention, Explanation, Knob, LiveGroup, Logits, PartTypes
from ftkit.units import format_bytes

_SHOWN_GROUPS = 12
_LEAST = 0.01
"""The share of a part that a type has to have to be printed; the JSON has all."""
_WIDTH = 20
_WHY = {
    "parameter": "weights, which stay",
    "buffer": "held beside the weights, or the batch",
    "optimizer": "masters and moments, which stay",
    "gradient": "kept until the update",
    "activation": "kept for the backward",
    "temporary": "at work just then",
}


def explanation_lines(explanation: Explanation) -> list[str]:
    """Return what a plan rests on as lines of text.

    Args:
        explanation: of the plan.

    Returns:
        Sections, each below its heading; the groups of tensors that are printed are the largest.
    """
    return [
        *_section("what is planned", [("batch", explanation.batch), *_attention_rows(explanation.attention)]),
        *_section("types", [*map(_type_row, explanation.parts), *_logits_rows(explanation.logits)]),
        *_live_lines(explanation),
        *_section("around the tensors", _around(explanation)),
        *_knob_lines(explanation),
        *_section("traced with", [("versions", _versions(explanation.versions))]),
    ]


def _section(heading: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    return ["", heading, *(f"  {name:{_WIDTH}} {text}".rstrip() for name, text in rows)]


def _attention_rows(attention: Sequence[Attention]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for one in attention:
        rows.append((f"attention, {_layers(one.layers)}", f"{one.kernel}: {one.call}"))
        rows += [("", f"not {kernel}: {'; '.join(reasons)}") for kernel, reasons in one.passed_over.items()]
    return rows


def _layers(layers: Sequence[int]) -> str:
    """Return numbers as ranges, such as `0-3 5`."""
    ranges: list[list[int]] = []
    for number in layers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def _type_row(part: PartTypes) -> tuple[str, str]:
    whole = sum(part.num_bytes.values())
    shares = {name or "in one piece": size / whole for name, size in part.num_bytes.items() if size >= _LEAST * whole}
    return part.part, ", ".join(name if share > 1 - _LEAST else f"{name} {share:.0%}" for name, share in shares.items())


def _logits_rows(logits: Logits | None) -> list[tuple[str, str]]:
    if logits is None:
        return []
    how = "whole" if logits.is_whole else f"{prod(logits.shape[:-1])} rows at a time"
    return [("logits", f"{logits.dtype}, {how}: {_shape(logits.shape)}")]


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _live_lines(explanation: Explanation) -> list[str]:
    """Return the largest groups of what lives at the peak as a table."""
    live, total = explanation.live, explanation.peak_active_bytes
    lines = ["", f"at the peak, {explanation.peak}: {format_bytes(total)} of tensors"]
    if not live:
        return [*lines, "  the step was not traced, so that no tensor is known"]
    lines += [_live_line(group, total) for group in live[:_SHOWN_GROUPS]]
    if rest := live[_SHOWN_GROUPS:]:
        size = sum(group.num_bytes for group in rest)
        lines.append(f"  {format_bytes(size):>11} {size / total:4.0%}  in {len(rest)} smaller groups")
    kinds = dict.fromkeys(group.kind for group in live)
    return [*lines, *(f"    {kind}: {_WHY[kind]}" for kind in kinds)]


def _live_line(group: LiveGroup, total: int) -> str:
    times = f"{group.num_tensors} of " if group.num_tensors > 1 else ""
    layers = f" in {group.num_layers} layers" if group.num_layers > 1 else ""
    what = f"{times}{_shape(group.shape)} {group.dtype}".strip() if group.dtype else "one piece of many tensors"
    made = f", {group.op}" if group.op else ""
    again = ", computed again" if group.is_recomputed else ""
    place = group.module or ("a layer's backward" if group.num_layers else "outside the modules")
    share = f"{format_bytes(group.num_bytes):>11} {group.num_bytes / total:4.0%}"
    return f"  {share}  {group.kind:10} {place}{made}: {what}{layers}{again}"


def _around(explanation: Explanation) -> list[tuple[str, str]]:
    rows = [("context", explanation.context)] if explanation.context else []
    rows.append(("reserved", explanation.allocator))
    if explanation.reserved_bytes is not None:
        free = explanation.reserved_bytes - explanation.peak_active_bytes
        rows.append(("", f"{format_bytes(explanation.reserved_bytes)}, of it {format_bytes(free)} fragmentation"))
    return rows + ([("messages", explanation.messages)] if explanation.messages else [])


def _knob_lines(explanation: Explanation) -> list[str]:
    if not explanation.knobs:
        return ["", "no single change that a search may make lowers the peak"]
    lines = ["", f"changes that lower the peak, one at a time (the cut as planned is {explanation.cut})"]
    return lines + [
        f"  saves {format_bytes(knob.saved_bytes):>11}  {knob.flags}  ({_after(knob)})" for knob in explanation.knobs
    ]


def _after(knob: Knob) -> str:
    time = "" if knob.step_seconds is None else f", {knob.step_seconds:.3g} s a step"
    return f"{format_bytes(knob.peak_process_bytes)}{time}, {knob.verdict}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
