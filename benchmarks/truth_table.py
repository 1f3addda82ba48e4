"""The page of published peaks beside the planner's: statistics, a table for each group, and what is not reproduced."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rows import Row, is_own
from benchmarks.runner import Answer
from benchmarks.truth_notes import NOTES, OF_OUR_OWN

Pair = tuple[Row, Answer]
"""A published row and what a trace said of it."""
METRICS = {
    "allocated_peak": "max_memory_allocated",
    "active_peak": "active bytes",
    "reserved_peak": "max_memory_reserved",
    "nvml_device": "NVML, whole card",
    "unspecified": "not said",
}
Goals = tuple[float, ...]
LIVE_GOALS: Goals = (0.003, 0.01, 0.02)
RESERVED_GOALS: Goals = (0.01, 0.05)
"""Errors at most: in the median, at the 95th percentile, and of live blocks at worst."""


def measured(row: Row) -> int:
    """Return the bytes that a row measured, which it has."""
    assert row["value_bytes"] is not None
    return row["value_bytes"]


def error(pair: Pair) -> float:
    """Return the relative error of a prediction; positive: too much."""
    row, found = pair
    return float(found["predicted_bytes"] / measured(row) - 1)


def counted_once(pairs: Sequence[Pair]) -> list[float]:
    """Return absolute errors; of rows that print the same measurement, the worst."""
    worst: dict[str, float] = {}
    for pair in pairs:
        key = pair[0]["dup_group"] or pair[0]["id"]
        worst[key] = max(worst.get(key, 0.0), abs(error(pair)))
    return list(worst.values())


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of the sorted values do not exceed, interpolated as numpy does."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def by_group(pairs: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Return the pairs of each group."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        groups[pair[0]["group"]].append(pair)
    return dict(groups)


def page(
    rows: Sequence[Row],
    found: Mapping[str, Answer],
    reason: Callable[[Row], str | None],
    open_fact: Callable[[Row], str | None],
) -> str:
    """Return the page in Markdown.

    Args:
        rows: published.
        found: id of a row to what its trace said.
        reason: why a row is not reproduced, or None.
        open_fact: which fact that decides a row's peak is not published, or None; such a row counts for no group.
    """
    ours = [(row, found[row["id"]]) for row in rows if row["id"] in found and is_own(row)]
    pairs = [(row, found[row["id"]]) for row in rows if row["id"] in found and not is_own(row)]
    is_open = {row["id"]: row["confidence"] != "high" or open_fact(row) is not None for row, _ in pairs}
    high = [pair for pair in pairs if not is_open[pair[0]["id"]]]
    medium = [pair for pair in pairs if is_open[pair[0]["id"]]]
    missing = [row for row in rows if row["id"] not in found]
    lines = [*_head(), *_statistics(high, medium), ""]
    for group, members in by_group(high).items():
        lines += _group(group, members)
    if medium:
        lines += ["## Of medium confidence", "", "With one or two unknowns; not counted above.", ""]
        for group, members in by_group(medium).items():
            lines += [*_group(group, members, level="###"), *_open_facts(members, open_fact)]
    return "\n".join([*lines, *_of_our_own(ours), *_missing(missing, reason)])


def _head() -> list[str]:
    return [
        "# Published peaks and the planner's",
        "",
        "Peaks of memory that others measured on GPUs and published, beside what a trace says of the same run. Each",
        "row is traced without a GPU, with the versions of the libraries that its stack had where they are named",
        "below, and with this project's torch; the files in `benchmarks/stacks` say in code what each stack did. No",
        "constant is fitted.",
        "",
        "An allocated peak is that of live blocks. A reserved peak is what the model of torch's caching allocator",
        "comes to when it is given the births and deaths of those tensors, each on its stream. It hands cached memory",
        "back when the card is full: the card's memory less a context (400 MB) and, with several GPUs, less one",
        "communicator of NCCL (544 MiB, NVIDIA/nccl issue 964). These runs did fit, so no prediction is beyond that.",
        "What NVML shows is the reserved peak and the context, as the row gives it.",
        "",
        f"The goals, group by group: {_percents(LIVE_GOALS)} of live blocks in the median, at the 95th percentile",
        f"and at worst; {_percents(RESERVED_GOALS)} of what is reserved, in the median and at the 95th percentile.",
        "",
        "Where a stack packs weights on the card, four threads read ahead of it, and how far is not published. Equal",
        "runs differ by up to 24.5 MiB in what is resident after loading, and two of Qwen2.5-7B by 1,392 MiB in what",
        "is reserved. A tool's error is that of the prediction that its authors publish with the row, mostly of rows",
        "that they had fitted it to.",
        "",
        "```console",
        "$ rows='public.jsonl public_2.jsonl benchmarks/own_rows.jsonl'",
        "$ python benchmarks/published.py setup $rows # versions, under runs/truth",
        "$ python benchmarks/published.py truth trace $rows # fills benchmarks/truth.jsonl",
        "$ python benchmarks/published.py truth table $rows # writes this page",
        "```",
        "",
    ]


def _of_our_own(pairs: Sequence[Pair]) -> list[str]:
    """Return the section of the runs that we measured ourselves."""
    if not pairs:
        return []
    lines = ["## Runs of our own", "", *OF_OUR_OWN, "", *_of_groups(by_group(pairs)), ""]
    return [*lines, *(line for group, members in by_group(pairs).items() for line in _group(group, members, "###"))]


def _percents(goals: Goals) -> str:
    *first, last = (f"{goal:.1%}" for goal in goals)
    return f"{', '.join(first)} and {last}"


def _statistics(pairs: Sequence[Pair], medium: Sequence[Pair]) -> list[str]:
    groups = by_group(pairs)
    lines = _of_groups(groups)
    if not pairs:
        return lines
    own = [pair for pair in pairs if pair[1]["versions"]]
    sizes_of = [counted_once(members) for members in groups.values()]
    spreads = {
        "the groups, each by its median": [statistics.median(sizes) for sizes in sizes_of],
        "the groups, each by its worst row": [max(sizes) for sizes in sizes_of],
        f"all {len(counted_once(pairs))} rows": counted_once(pairs),
        f"the {len(counted_once(own))} rows traced with their stack's own versions": counted_once(own),
        f"all, and the {len(counted_once(medium))} of medium confidence": counted_once([*pairs, *medium]),
    }
    lines += [
        "",
        "Errors are absolute; a measurement that is printed twice counts once.",
        "",
        "| | median | 95th percentile |",
        "|---|---:|---:|",
        *(
            f"| over {what} | {statistics.median(sizes):.2%} | {percentile(sizes, 0.95):.2%} |"
            for what, sizes in spreads.items()
            if sizes
        ),
    ]
    return lines


def _of_groups(groups: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Return a table of groups: their errors, and the goals that they miss."""
    lines = [
        "| group | rows | what was read | median | 95th percentile | worst | goals missed | worst row |",
        "|---|---:|---|---:|---:|---:|---|---|",
    ]
    for group, members in groups.items():
        sizes = counted_once(members)
        last = max(members, key=lambda pair: abs(error(pair)))
        kinds = {row["metric_class"] for row, _ in members}
        metrics = ", ".join(sorted(METRICS[kind] for kind in kinds))
        goals = LIVE_GOALS if kinds <= {"allocated_peak", "active_peak"} else RESERVED_GOALS
        lines.append(
            f"| {group} | {len(sizes)} | {metrics} | {statistics.median(sizes):.2%} | {percentile(sizes, 0.95):.2%} "
            f"| {max(sizes):.2%} | {_missed(sizes, goals)} | {last[0]['id']} |"
        )
    return lines


def _missed(sizes: Sequence[float], goals: Goals) -> str:
    """Return which goals errors miss, in words."""
    found = {"median": statistics.median(sizes), "95th percentile": percentile(sizes, 0.95), "worst": max(sizes)}
    return ", ".join(name for (name, size), goal in zip(found.items(), goals, strict=False) if size > goal) or "none"


def _group(group: str, pairs: Sequence[Pair], level: str = "##") -> list[str]:
    sources = sorted({f"{row['source']['repo']}, {row['source']['file']}" for row, _ in pairs})
    versions = sorted({", ".join(f"{name} {one}" for name, one in found["versions"].items()) for _, found in pairs})
    lines = [f"{level} {group}", "", f"Source: {'; '.join(sources)}.", ""]
    lines += [f"Traced with {'; '.join(versions)}." if any(versions) else "Traced with this project's versions.", ""]
    others = [column for column in OTHER_COLUMNS if any(column.of(*pair) is not None for pair in pairs)]
    names = "".join(f" {column.name} |" for column in others)
    lines += [
        f"| row | run | measured GB | predicted GB | error |{names}",
        f"|---|---|---:|---:|---:|{'---:|' * len(others)}",
    ]
    for pair in pairs:
        row, found = pair
        sizes = f"{measured(row) / 1e9:.3f} | {found['predicted_bytes'] / 1e9:.3f}"
        more = "".join(f" {_percent(column.of(row, found))} |" for column in others)
        lines.append(f"| {row['id']} | {_run(row)} | {sizes} | {error(pair):+.2%} |{more}")
    notes = [line for row, _ in pairs if row["id"] in NOTES for line in ("", f"{row['id']}: {NOTES[row['id']]}")]
    return [*lines, *notes, "", *_summaries(pairs, others)]


def _open_facts(pairs: Sequence[Pair], open_fact: Callable[[Row], str | None]) -> list[str]:
    """Return which facts of a group's rows are not published."""
    rows: dict[str, list[str]] = defaultdict(list)
    for row, _ in pairs:
        if (fact := open_fact(row)) is not None:
            rows[fact].append(row["id"])
    return [line for fact, ids in rows.items() for line in (f"{', '.join(ids)}: {fact}.", "")]


@dataclass(frozen=True)
class OtherColumn:
    """Another error that some groups have.

    Attributes:
        name: its heading.
        of: a row and an answer to the error; None: the row does not have it.
    """

    name: str
    of: Callable[[Row, Answer], float | None]


def _reserved_error(row: Row, found: Answer) -> float | None:
    published = (row.get("extra_metrics") or {}).get("reserved_peak_bytes")
    return found["reserved_bytes"] / published - 1 if published and "reserved_bytes" in found else None


def _their_error(row: Row, _: Answer) -> float | None:
    said = row.get("their_prediction_bytes")
    return None if said is None else said / measured(row) - 1


def _foretold_error(row: Row, _: Answer) -> float | None:
    said = row.get("foretold_bytes")
    return None if said is None else said / measured(row) - 1


OTHER_COLUMNS = (
    OtherColumn("reserved", _reserved_error),
    OtherColumn("their tool's error", _their_error),
    OtherColumn("before the run", _foretold_error),
)


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.2%}"


def _summaries(pairs: Sequence[Pair], others: Sequence[OtherColumn]) -> list[str]:
    """Return what the other columns come to."""
    lines = []
    for column in others:
        sizes = [abs(error) for pair in pairs if (error := column.of(*pair)) is not None]
        words = f"median {statistics.median(sizes):.2%}, 95th percentile {percentile(sizes, 0.95):.2%}"
        words += f", worst {max(sizes):.2%} of {len(sizes)} rows"
        missed = f"; goals missed: {_missed(sizes, RESERVED_GOALS)}" if column.name == "reserved" else ""
        lines += [f"{column.name.capitalize()}: {words}{missed}.", ""]
    return lines


def _run(row: Row) -> str:
    """Say a run in a few words."""
    words = [row["model_id"].rsplit("/", 1)[-1], row["method"], f"{row['micro_batch']} x {row['seq_len']}"]
    if row["n_gpus"] > 1:
        words.append(f"{row['n_gpus']} GPUs, {row['parallel'].partition(',')[0]}")
    if row["offload"] not in (None, "none"):
        words.append("offloaded")
    return ", ".join(words)


def _missing(rows: Sequence[Row], reason: Callable[[Row], str | None]) -> list[str]:
    """Return the rows that are not reproduced, by reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["confidence"] == "high" or reason(row) is None:
            reasons[reason(row) or "not run"].append(row["id"])
    if not reasons:
        return []
    lines = ["## Not reproduced, and why", "", "| reason | rows |", "|---|---|"]
    return [*lines, *(f"| {why} | {', '.join(ids)} |" for why, ids in reasons.items()), ""]
