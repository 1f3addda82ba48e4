"""One rank of the plain engine beside one of DeepSpeed's, and beside two ranks of the plain engine, in turns.

    python -m benchmarks.engines FOLDER [ROUNDS]

Each rank has one thread. Every measurement is `ftkit profile` in processes of its own: MiniLM under LoRA of rank 8 in
bf16, a global batch of 32 sequences of 64 tokens, six timed steps after one. What is compared is the step, as medians
of the rounds with the spread; DeepSpeed partitions at stage 2, which with one rank partitions nothing. The machine has
to have a core for each rank, and nothing else to do.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.beside import ROOT, spread

PLAIN, DEEPSPEED, TWO = "plain, 1 rank", "DeepSpeed, 1 rank", "plain, 2 ranks"
SWEEPS = {PLAIN: "plain:null:1", DEEPSPEED: "deepspeed:2:1", TWO: "plain:null:2"}
FLAGS = ("--method", "lora", "--precision", "bf16", "--global-batch-size", "32", "--max-length", "64")
STEPS = ("--steps", "6", "--warmup", "1", "--no-plan", "--json")


def step_seconds(name: str, folder: Path) -> float:
    """Return the seconds of a step, measured now.

    Args:
        name: of what is measured.
        folder: for its record.
    """
    axis = f"engine.name:engine.zero_stage:world_size={SWEEPS[name]}"
    command = [sys.executable, "-m", "ftkit", "profile", *FLAGS, *STEPS, "--sweep", axis, "--output", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (row,) = json.loads(done.stdout)
    assert row["status"] == "completed", row["reason"]
    return float(row["step_seconds"])


def table(seconds: Mapping[str, Sequence[float]]) -> str:
    """Return the steps of each, and beside one plain rank of the same round."""
    lines = ["| | a step, s | beside one plain rank |", "|---|---|---|"]
    for name, values in seconds.items():
        ratios = [own / plain for own, plain in zip(values, seconds[PLAIN], strict=True)]
        times = [1 / ratio for ratio in ratios] if name == TWO else ratios
        words = "" if name == PLAIN else f"{spread(times, 3)} times as {'fast' if name == TWO else 'long'}"
        lines.append(f"| {name} | {spread(values, 3)} | {words} |")
    return "\n".join(lines)


def main() -> None:
    """Measure in turns, and print the table after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in SWEEPS}
    for number in range(asked.rounds):
        for name in SWEEPS if number % 2 else reversed(SWEEPS):
            seconds[name].append(step_seconds(name, asked.folder / f"{number} {name}"))
        print(f"{number + 1} of {asked.rounds} rounds\n\n{table(seconds)}\n", flush=True)


if __name__ == "__main__":
    main()
