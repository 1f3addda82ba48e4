"""What planning costs: seconds with imports, and memory, of whole commands.

    python benchmarks/plan_cost.py [--repeats 3]

Each command runs alone, in a process of its own; the medians of its wall time and of its processor time are printed,
and the most memory that it ever had. Processor time is the steadier of the two on a machine that others use too.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

MODEL = ("--task", "causal-lm", "--method", "lora", "--max-length", "512")
COMMANDS = {
    "7B, LoRA": ("--model", "llama-2-7b", *MODEL, "--gpu", "a100-80gb", "--json"),
    "70B, LoRA": ("--model", "llama-2-70b", *MODEL, "--gpu", "mi300x", "--json"),
    "70B, LoRA, every layer traced": ("--model", "llama-2-70b", *MODEL, "--gpu", "mi300x", "--json", "--exact"),
    "7B, LoRA, a smaller cut fits": ("--model", "llama-2-7b", *MODEL, "--gpu", "rtx3090"),
    "7B, search over 100 configurations": ("--model", "llama-2-7b", *MODEL, "--gpu", "rtx3090", "--search", "--json"),
}
DOES_NOT_FIT = 8


@dataclass(frozen=True)
class Cost:
    """Of one command.

    Attributes:
        wall_seconds: from start to end.
        cpu_seconds: of all its threads, in user and system mode.
        peak_bytes: of resident memory.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def run(arguments: tuple[str, ...]) -> Cost:
    """Run `ftkit plan` once, by itself."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "ftkit", "plan", *arguments], stdout=output, stderr=output, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status) not in (0, DOES_NOT_FIT):
            output.seek(0)
            sys.exit(output.read().decode())
    return Cost(time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load {os.getloadavg()[0]:.1f} before it starts; medians of {repeats}")
    print(f"{'ftkit plan':38} {'wall':>8} {'processor':>10} {'memory':>10}")
    for name, arguments in COMMANDS.items():
        costs = [run(arguments) for _ in range(repeats)]
        wall = statistics.median(cost.wall_seconds for cost in costs)
        cpu = statistics.median(cost.cpu_seconds for cost in costs)
        memory = max(cost.peak_bytes for cost in costs)
        print(f"{name:38} {wall:7.1f}s {cpu:9.1f}s {memory / 2**30:6.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
