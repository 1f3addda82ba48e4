"""Published peaks of other stacks against traces of what those stacks did.

    python benchmarks/truth.py setup [--stack NAME]
    python benchmarks/truth.py trace ROWS [--stack NAME] [--only TEXT] [--results FILE] [--medium]
    python benchmarks/truth.py table ROWS [--results FILE] [--out FILE]

What each stack did is said in benchmarks/stacks, from its own source; nothing is fitted. `setup` installs each stack's
own versions beside this project's torch; `trace` runs each stack in a process of its own that finds them first, and
keeps what came out in benchmarks/truth.jsonl, and in benchmarks/verdicts.jsonl whether it fits the row's card; `table`
writes docs/truth.md from that. A row that is not reproduced is listed with the reason.
"""

import argparse
import json
import shutil
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import stacks, truth_table  # noqa: E402  # found from the line above
from benchmarks.stacks import Row  # noqa: E402

INSTALLED = ROOT / "runs" / "truth"
RESULTS = ROOT / "benchmarks" / "truth.jsonl"
OUT = ROOT / "docs" / "truth.md"
SAID_OF_A_MEASUREMENT = {"id", "value", "value_bytes", "unit", "date", "throughput", "notes", "gpu"}
"""Fields in which two rows may differ whose runs do alike: they are traced once."""


def setup(names: list[str]) -> None:
    """Install the versions of stacks, each into a folder of its own."""
    for name in names:
        if pins := stacks.load(name).REQUIREMENTS:
            target = INSTALLED / name
            shutil.rmtree(target, ignore_errors=True)  # pip would leave the metadata of another version beside it
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
            subprocess.run([*command, str(target), *pins], check=True)
            print(f"{name}: {', '.join(pins)}")


def rows(path: Path, *, medium: bool = False) -> Iterator[Row]:
    """Yield the rows of known length, of high confidence or also of medium."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row: Row = json.loads(line)
        if row["length_known"] and (row["confidence"] == "high" or (medium and row["confidence"] == "medium")):
            yield row


def read_results(path: Path) -> dict[str, Any]:
    """Return what was found for each row."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {one["id"]: one for one in map(json.loads, lines)}


def trace(arguments: argparse.Namespace) -> int:
    """Trace rows, each stack in a process of its own; return how many stacks failed."""
    failed = 0
    for name in [arguments.stack] if arguments.stack else stacks.names():
        chosen = [
            row
            for row in rows(arguments.rows, medium=arguments.medium)
            if arguments.only in row["id"] and stacks.stack_of(row) == name and stacks.reason_not_traced(row) is None
        ]
        if chosen:
            failed += not stacks.run_child(__file__, name, chosen, arguments.results)
    return failed


def judge(name: str, row: Row, events: Sequence[Any]) -> None:
    """Keep the verdict of a row whose card is known, so that benchmarks/verdicts.py need not trace it again."""
    from benchmarks import verdicts

    if name in verdicts.judges(row):
        keep(verdicts.RESULTS, {"id": f"{row['id']} {name}", **verdicts.verdict(row, events)})


def child(name: str, results: Path) -> int:
    """Trace the rows that come in; return how many failed."""
    from benchmarks.stacks.traced import Event, events_of, figure

    stack = stacks.enter(name)
    versions = {pin.partition("==")[0]: metadata.version(pin.partition("==")[0]) for pin in stack.REQUIREMENTS}
    failed = 0
    known: dict[str, tuple[int, Sequence[Event]]] = {}
    for row in map(json.loads, sys.stdin.read().splitlines()):
        run = json.dumps([row[key] for key in sorted(row.keys() - SAID_OF_A_MEASUREMENT)])
        try:
            if run not in known:
                found = stack.trace_row(row)
                known[run] = figure(row, found), events_of(found)
            predicted, events = known[run]
            judge(name, row, events)
        except Exception:  # the other rows are still wanted; the exit status says that one failed
            traceback.print_exc()
            print(f"{row['id']:44} failed", flush=True)
            failed += 1
            continue
        keep(results, {"id": row["id"], "stack": name, "predicted_bytes": predicted, "versions": versions})
        sizes = f"{row['value_bytes'] / 1e9:8.3f} GB  {predicted / 1e9:8.3f} GB"
        print(f"{row['id']:44} {sizes}  {predicted / row['value_bytes'] - 1:+.2%}", flush=True)
    return failed


def keep(path: Path, result: dict[str, Any]) -> None:
    """Put one result in the place of the one that was there."""
    found = read_results(path) | {result["id"]: result}
    path.write_text("".join(json.dumps(found[key]) + "\n" for key in sorted(found)), encoding="utf-8")


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    installs, traces, tables = (commands.add_parser(name) for name in ("setup", "trace", "table"))
    runs = commands.add_parser("child")
    runs.add_argument("name")
    runs.add_argument("results", type=Path)
    for command in (traces, tables):
        command.add_argument("rows", type=Path)
        command.add_argument("--results", type=Path, default=RESULTS)
    for command in (installs, traces):
        command.add_argument("--stack", choices=stacks.names())
    traces.add_argument("--only", default="", help="part of a row's id")
    traces.add_argument("--medium", action="store_true", help="rows of medium confidence too")
    tables.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.command == "setup":
        setup([arguments.stack] if arguments.stack else stacks.names())
        return 0
    if arguments.command == "child":
        return int(child(arguments.name, arguments.results) > 0)
    if arguments.command == "trace":
        return int(trace(arguments) > 0)
    found = read_results(arguments.results)
    page = truth_table.page(list(rows(arguments.rows, medium=True)), found, stacks.reason_not_traced)
    arguments.out.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
