"""Published runs that fitted their card, and those that did not, put to the planner: does it fit?

    python benchmarks/verdicts.py trace ROWS... [--stack NAME] [--only TEXT]
    python benchmarks/verdicts.py table ROWS... [--out FILE]

Each row is judged by the trace of its own stack where benchmarks/stacks has one (in a process of its own, with its own
versions), and by `ftkit plan`'s prediction where ftkit can be told the same configuration. A run fits when every
request of the replayed steps is met in the card's memory less what the driver takes (CUDA_CONTEXT_BYTES of
ftkit.hardware); where segments of fixed size do not meet it, those that grow are tried.
`trace` keeps what came out in benchmarks/verdicts.jsonl; `table` writes docs/verdicts.md from that.
"""

import argparse
import json
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import own_plan, stacks, verdict_table  # noqa: E402  # found from the line above
from benchmarks.stacks import Row  # noqa: E402
from benchmarks.truth import keep, read_results  # noqa: E402
from ftkit.machine.hardware import CUDA_CONTEXT_BYTES, GIB, Gpu, recognize_gpu  # noqa: E402

RESULTS = ROOT / "benchmarks" / "verdicts.jsonl"
OUT = ROOT / "docs" / "verdicts.md"
OWN = "ftkit"
"""Who judges, where it is not the trace of a stack: ftkit's own plan."""


def card(row: Row) -> Gpu | None:
    """Return the card of a row, such as `2x RTX 3090`; None: not said, or not in the table."""
    name = re.sub(r"^\d+x ", "", row["gpu"] or "")
    if "80GB implied" in name:
        name = "A100-SXM4-80GB"
    return recognize_gpu(name.partition(" (")[0])


def room(row: Row) -> int | None:
    """Return the bytes that a row's card leaves for tensors; None: the card is not known."""
    found = card(row)
    return None if found is None else found.memory_bytes - CUDA_CONTEXT_BYTES


def judges(row: Row) -> list[str]:
    """Return who can say whether a row fits: its stack, ftkit's own plan, both or nobody."""
    if card(row) is None or row["seq_len"] is None:
        return []
    names = [] if stacks.reason_not_traced(row) else [str(stacks.stack_of(row))]
    return names + ([OWN] if own_plan.reason_not_planned(row) is None else [])


def why_nobody(row: Row) -> str:
    """Return why nobody says anything of a row."""
    if card(row) is None:
        return "its card is not named, or is not in ftkit's table"
    if row["seq_len"] is None:
        return "neither its length nor a cap is known"
    if judges(row):
        return "not run"
    return f"stack: {stacks.reason_not_traced(row)}; ftkit: {own_plan.reason_not_planned(row)}"


def judge(name: str, row: Row) -> dict[str, Any]:
    """Return what one judge says of a row: bytes, and whether they fit."""
    gpu = card(row)
    assert gpu is not None
    if name == OWN:
        return own_plan.judge(row, gpu)
    from benchmarks.stacks.traced import events_of

    return verdict(row, events_of(stacks.load(name).trace_row(row)))


def verdict(row: Row, events: Sequence[Any]) -> dict[str, Any]:
    """Return the verdict of a stack's trace: its births and deaths."""
    from ftkit.observe.allocator import replay

    free, capped, grown = replay(events), replay(events, room(row)), replay(events, room(row), expandable=True)
    return {
        "active_bytes": free.peak_active_bytes,
        "reserved_bytes": free.peak_reserved_bytes,
        "fits": capped.fits,
        "fits_grown": grown.fits,
    }


def trace(arguments: argparse.Namespace) -> int:
    """Judge rows, each stack in a process of its own; return how many processes failed."""
    failed = 0
    for name in [arguments.stack] if arguments.stack else [*stacks.names(), OWN]:
        known = read_results(arguments.results) if arguments.missing else {}
        chosen = [
            row
            for row in rows(arguments.rows)
            if arguments.only in row["id"] and name in judges(row) and f"{row['id']} {name}" not in known
        ]
        if chosen:
            failed += not stacks.run_child(__file__, name, chosen, arguments.results)
    return failed


def child(name: str, results: Path) -> int:
    """Judge the rows that come in; return how many failed."""
    if name != OWN:
        stacks.enter(name)
    failed = 0
    for row in map(json.loads, sys.stdin.read().splitlines()):
        try:
            said = judge(name, row)
        except Exception:  # the other rows are still wanted; the exit status says that one failed
            traceback.print_exc()
            print(f"{row['id']:44} failed", flush=True)
            failed += 1
            continue
        keep(results, {"id": f"{row['id']} {name}", **said})
        print(f"{row['id']:44} {name:10} {said['reserved_bytes'] / GIB:7.2f} GiB  fits {said['fits']}", flush=True)
    return failed


def rows(paths: list[Path]) -> Iterator[Row]:
    """Yield the rows of files; a row without a measurement is one that did not fit."""
    for path in paths:
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    traces, tables = (commands.add_parser(name) for name in ("trace", "table"))
    runs = commands.add_parser("child")
    runs.add_argument("name")
    runs.add_argument("results", type=Path)
    for command in (traces, tables):
        command.add_argument("rows", type=Path, nargs="+")
        command.add_argument("--results", type=Path, default=RESULTS)
    traces.add_argument("--stack", choices=[*stacks.names(), OWN])
    traces.add_argument("--only", default="", help="part of a row's id")
    traces.add_argument("--missing", action="store_true", help="only what nobody judged before")
    tables.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.command == "trace":
        return int(trace(arguments) > 0)
    if arguments.command == "child":
        return int(child(arguments.name, arguments.results) > 0)
    page = verdict_table.page(list(rows(arguments.rows)), read_results(arguments.results), room, why_nobody)
    arguments.out.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
