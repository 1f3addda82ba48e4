"""Two threads that wait for one another briefly, beside OpenMP's own patience and beside one thread, in turns.

    python -m benchmarks.waiting FOLDER [--rounds 3]

Each run is `ftkit train --method lora` on the embedded reviews for 30 steps, in a process of its own, first on a
machine that does nothing else and then with a program beside it that computes on the first core all the time. What is
compared are tokens a second, as medians of the rounds with the spread. The machine has to have two cores, free of
others.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.beside import ROOT, spread

SPINS = "GOMP_SPINCOUNT"
THREADS = {
    "two threads": {"OMP_NUM_THREADS": "2"},
    "two threads, OpenMP's own patience": {"OMP_NUM_THREADS": "2", SPINS: "300000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
FLAGS = (
    "--method",
    "lora",
    "--precision",
    "bf16",
    "--max-steps",
    "30",
    "--set",
    "data.validation_share=0",
    "--no-plan",
)
NEIGHBOUR = ("taskset", "-c", "0", sys.executable, "-c", "while True: pass")


def tokens_per_second(setting: Mapping[str, str], output: Path) -> float:
    """Return what the steps of a run read, measured now.

    Args:
        setting: variables of its environment.
        output: its folder.
    """
    command = [sys.executable, "-m", "ftkit", "train", *FLAGS, "--overwrite", "--json", "--output", str(output)]
    unset = {name: value for name, value in os.environ.items() if name != SPINS}
    environment = unset | {"PYTHONPATH": str(ROOT), **setting}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    records = map(json.loads, (output / "record.jsonl").read_text(encoding="utf-8").splitlines())
    rates = [record["tokens_per_second"] for record in records if record["kind"] == "step"]
    return float(sum(rates) / len(rates))


def table(rates: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return tokens a second of each, alone and beside a neighbour."""
    lines = ["| | alone: tokens/s | beside another program: tokens/s |", "|---|---:|---:|"]
    for name, values in rates.items():
        alone, beside = zip(*values, strict=True)
        lines.append(f"| {name} | {spread(alone, 0)} | {spread(beside, 0)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure in turns, and print the table after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in THREADS}
    for number in range(asked.rounds):
        for name, setting in THREADS.items():
            alone = tokens_per_second(setting, asked.folder)
            with subprocess.Popen(NEIGHBOUR) as neighbour:
                try:
                    rates[name].append((alone, tokens_per_second(setting, asked.folder)))
                finally:
                    neighbour.kill()
        print(f"{number + 1} of {asked.rounds} rounds\n\n{table(rates)}\n", flush=True)


if __name__ == "__main__":
    main()
