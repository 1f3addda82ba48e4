"""The page of verdicts, from the kept results."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from benchmarks.rows import Row
from benchmarks.runner import Answer
from ftkit.machine.contexts import OLDER_BYTES
from ftkit.machine.hardware import GIB

HEAD = """# Does it fit? Published answers beside the planner's

```console
$ python benchmarks/published.py verdicts trace public.jsonl public_2.jsonl out_of_memory.jsonl # fills verdicts.jsonl
$ python benchmarks/published.py verdicts table public.jsonl public_2.jsonl out_of_memory.jsonl # writes this page
```

A run fits when every request of the replayed steps is met in the card's memory less {context} MB. That is what the
driver takes for one process with lazily loaded kernels ([pytorch issue
109888](https://github.com/pytorch/pytorch/issues/109888)); it is the only margin, and it was not fitted to any row
below. It does not cover what cannot be known beforehand, such as kernels that are loaded eagerly and the buffers of
communication libraries: `ftkit plan --search` recommends only what leaves another twentieth of the card free.

*stack* is the trace of the row's own stack with its own versions; *ftkit* is `ftkit plan`'s prediction of the same
configuration in ftkit, which does not need the same memory as the other stack. The lengths of ms-swift's and of
LitGPT's recipe rows are caps: it is the cap that is judged, the most that the run can have needed. A row is judged if
its card is named and its length or its cap is known. For rows of low confidence, the collection itself calls the
figure suspect: the two full fine-tunings below cannot have kept AdamW's moments, which their recipe asks for.

Segments of fixed size lose some memory to fragmentation, and how much depends on addresses and timing that no trace
knows. So a run is called unfit only if it does not fit in growing segments either (torch's
`expandable_segments:True`), which hardly fragment; if it fits only in those, the answer is *if segments grow*. `ftkit
plan` then says the same, and offers them (`--set engine.expandable_segments=true`).

Under FSDP, memory that another stream used is held until the host has waited for the device, or until the card is full
and torch waits by itself (CUDACachingAllocator.cpp, synchronize_and_free_events).
"""
FITS, GROWN, UNFIT = "fits", "if segments grow", "does not fit"
NOTES = {
    "fsdpq_4090_Llama-2-7b-hf_qlora_fsdp_off_bs12_2048": (
        "with segments of fixed size, 16.0 GiB are held when a request of 2.93 GiB fails: 4.6 GiB of the replay are "
        "fragmented, among them a cached segment of 2.93 GiB in which one tensor of 384 MiB was placed. The run placed "
        "that tensor elsewhere; it is not known why."
    )
}
"""What is known of a row that the fixed segments of the replay do not hold, and those of the run did."""


def page(
    rows: Sequence[Row],
    found: Mapping[str, Answer],
    room: Callable[[Row], int | None],
    why_nobody: Callable[[Row], str],
) -> str:
    """Return the page as Markdown."""
    lines = [HEAD.format(context=OLDER_BYTES // 10**6)]
    lines += ["## Published as out of memory", "", *_head()]
    failed = [row for row in rows if row["value_bytes"] is None]
    lines += [_line(row, found, room) for row in failed]
    lines += _fit_in_ftkit_alone(failed, found)
    for reason, ids in _not_judged(failed, found, why_nobody).items():
        lines += ["", f"{', '.join(ids)}: not judged ({reason})."]
    fitted = [row for row in rows if row["value_bytes"] is not None]
    for title, answer in (("called unfit", UNFIT), ("held by segments that grow", GROWN)):
        those = [row for row in fitted if answer in map(_answer, _said(row, found).values())]
        lines += ["", f"## Published as fitting, {title}", "", *_head()]
        lines += [_line(row, found, room) for row in those] or ["none"]
        lines += [line for row in those if row["id"] in NOTES for line in ("", f"{row['id']}: {NOTES[row['id']]}")]
    lines += ["", "## Published as fitting, by group", ""]
    lines += [
        "| group | rows | judged by stack | fit | judged by ftkit | fit | not judged |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += _groups(fitted, found)
    reasons = _not_judged(rows, found, why_nobody)
    lines += ["", "## Not judged, and why", "", "| reason | rows |", "|---|---|"]
    lines += [f"| {reason} | {', '.join(ids)} |" for reason, ids in reasons.items()]
    return "\n".join([*lines, ""])


def _fit_in_ftkit_alone(rows: Sequence[Row], found: Mapping[str, Answer]) -> list[str]:
    """Say of runs that did not fit which fit in ftkit, where the trace of their stack says that they do not."""
    ids = []
    for row in rows:
        said = _said(row, found)
        is_said = "stack" in said and "ftkit" in said
        if is_said and said["ftkit"]["fits"] and not said["stack"]["fits"]:
            ids.append(row["id"])
    if not ids:
        return []
    return [
        "",
        f"{', '.join(ids)}: the stack's own trace agrees with what was published, that the run does not fit. ftkit's",
        "plan says that the same configuration fits in ftkit, which keeps less: no verdict on the published run.",
    ]


def _not_judged(
    rows: Sequence[Row], found: Mapping[str, Answer], why_nobody: Callable[[Row], str]
) -> dict[str, list[str]]:
    """Return the rows that nobody judges, by the reason."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if not _said(row, found):
            reasons[why_nobody(row)].append(row["id"])
    return reasons


def _said(row: Row, found: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return who said what of a row: `ftkit`, and `stack`."""
    prefix = f"{row['id']} "
    by = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    return {("ftkit" if name == "ftkit" else "stack"): value for name, value in by.items()}


def _answer(said: Answer) -> str:
    return FITS if said["fits"] else GROWN if said["fits_grown"] else UNFIT


def _head() -> list[str]:
    return [
        "| row | model | method | card | room GiB | stack GiB | stack says | ftkit GiB | ftkit says | published GiB |",
        "|---|---|---|---|---:|---:|---|---:|---|---:|",
    ]


def _line(row: Row, found: Mapping[str, Answer], room: Callable[[Row], int | None]) -> str:
    said, space = _said(row, found), room(row)
    name = row["id"] + (" (low confidence)" if row["confidence"] == "low" else "")
    cells = [name, row["model_id"].rsplit("/", 1)[-1], f"{row['method']}, {row['micro_batch']} x {row['seq_len']}"]
    cells += [row["gpu"] or "not said", f"{space / GIB:.2f}" if space else "-"]
    for name in ("stack", "ftkit"):
        one = said.get(name)
        cells += [f"{one['reserved_bytes'] / GIB:.2f}", _answer(one)] if one else ["-", "-"]
    cells.append("out of memory" if row["value_bytes"] is None else f"{row['value_bytes'] / GIB:.2f}")
    return "| " + " | ".join(cells) + " |"


def _groups(rows: Sequence[Row], found: Mapping[str, Answer]) -> list[str]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    lines = []
    for group, members in groups.items():
        said = [_said(row, found) for row in members]
        counts = [str(len(members))]
        for name in ("stack", "ftkit"):
            given = [_answer(one[name]) for one in said if name in one]
            counts += [str(len(given)), str(sum(one != UNFIT for one in given))]
        lines.append(f"| {group} | {' | '.join(counts)} | {sum(not one for one in said)} |")
    return lines
