"""The processor seconds of a step on this machine's CPU beside those that are planned.

    OMP_NUM_THREADS=1 python -m benchmarks.cpu_seconds [--rounds 3] [--precision bf16 fp32] [SETTINGS ...]

In each round the machine is calibrated anew, and each run is planned by that: a machine whose speed changes from one
minute to the next changes both. The table has the medians of the rounds, and for the error the least and the most.

SETTINGS name one configuration each, such as "method=lora engine.zero_stage=2"; without any, the twelve of
docs/results.md run. Each runs in a process of its own, on the micro-batches that are planned for it, with one rank and
one thread. What is measured is the time that the process worked, the median of some steps, so that other programs do
not count; caches that they empty do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace

import torch

from benchmarks.truth_table import percentile
from ftkit.config.files import load_config
from ftkit.config.tree import RunConfig
from ftkit.engine.assemble import assemble
from ftkit.engine.resolve import Devices, resolve
from ftkit.machine.heap import keep_heap_whole
from ftkit.machine.process import ProcessContext, joined
from ftkit.models.build import set_training
from ftkit.models.sources.source import load_config as load_architecture
from ftkit.models.sources.source import load_tokenizer, own_label_names, resolve_source
from ftkit.models.sources.start import settle_start
from ftkit.observe.recorded import make_batches
from ftkit.plan.inputs.architectures import unseen_labels
from ftkit.plan.inputs.shapes import plan_shape
from ftkit.plan.inputs.target import find_target
from ftkit.plan.predict import predict
from ftkit.step.step import train_step

METHODS = ("feature-extraction", "lora", "qlora", "full")
CONFIGURATIONS = (
    *(f"method={method} model.recompute={level}" for method in METHODS for level in ("none", "layer")),
    "method=lora engine.zero_stage=2",
    "method=lora engine.zero_stage=3",
    "method=full engine.zero_stage=2",
    "method=full engine.zero_stage=3 model.recompute=layer",
)
USUAL = "cache.trunk=off batch.micro_batch_tokens=512 batch.global_batch_size=8"
_STEPS = 4


def config_of(settings: str) -> RunConfig:
    """Return the configuration that settings name, separated by blanks."""
    return load_config(settings=settings.split())


def measured(settings: str) -> float:
    """Take steps in this process; return the seconds of the median one.

    Args:
        settings: of the run.
    """
    config, process, seconds = config_of(settings), ProcessContext(), []
    source = resolve_source(config.model, config.task)
    tokenizer = load_tokenizer(source)
    with joined(process):
        run = resolve(config, Devices.of(process))
        run = replace(run, config=settle_start(run.config, source, tokenizer))
        kind, num_labels = unseen_labels(run.config)
        names = own_label_names(source) or [str(number) for number in range(num_labels)]
        named = names if run.config.task == "sequence-classification" else None
        architecture = load_architecture(source, named, tokenizer.pad_token_id, kind)
        engine = assemble(run, source, architecture, process).engine
        set_training(engine.model, True)
        micro_batches = make_batches(engine.objective, plan_shape(config, process.world_size))
        num_targets = sum(one.labels.numel() for one in micro_batches)
        for _ in range(_STEPS + 1):
            begun = time.process_time()
            float(train_step(engine, micro_batches, num_targets, 1e-5).loss)
            seconds.append(time.process_time() - begun)
    return statistics.median(seconds[1:])


def measured_alone(settings: str) -> float:
    """Return the same of a process of its own, whose heap is a run's.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.cpu_seconds", "--alone", settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"{settings}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def calibrated() -> None:
    """Measure this machine for the plans that follow, as a user would.

    Raises:
        CalledProcessError: that failed.
    """
    subprocess.run([sys.executable, "-m", "ftkit", "doctor", "--calibrate"], stdout=subprocess.DEVNULL, check=True)


def compared(settings: str) -> tuple[float, float]:
    """Return the seconds of a step that are measured, and those that are planned."""
    planned = predict(config_of(settings), find_target("cpu")).step_seconds
    assert planned is not None, settings
    return measured_alone(settings), planned


def main() -> None:
    """Print the tables: of each round as it comes, and of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=CONFIGURATIONS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        keep_heap_whole()
        print(json.dumps(measured(asked.settings[0])))
        return
    assert torch.get_num_threads() == 1, "processor seconds of several threads are no time; set OMP_NUM_THREADS=1"
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for number in range(asked.rounds):
        calibrated()
        for precision in asked.precision:
            for settings in asked.settings:
                one = compared(f"{USUAL} model.precision={precision} {settings}")
                found[settings, precision].append(one)
                print(
                    f"round {number + 1}: {settings}, {precision}: {one[0]:.3g} s, planned {one[1]:.3g} s", flush=True
                )
    print("\n| run | precision | measured | planned | error | least, most |\n|---|---|---:|---:|---:|---:|")
    medians = []
    for (settings, precision), pairs in found.items():
        errors = sorted(planned / seconds - 1 for seconds, planned in pairs)
        seconds, planned = (statistics.median(column) for column in zip(*pairs, strict=True))
        medians.append(statistics.median(errors))
        print(f"| {settings} | {precision} | {seconds:.3g} s | {planned:.3g} s | {medians[-1]:+.1%} |", end="")
        print(f" {errors[0]:+.1%}, {errors[-1]:+.1%} |")
    sizes = [abs(error) for error in medians]
    middle, size = statistics.median(medians), statistics.median(sizes)
    print(f"\nmedian {middle:+.1%}; of the sizes {size:.1%}, 95th percentile {percentile(sizes, 0.95):.1%}, ", end="")
    print(f"worst {max(sizes):.1%}")


if __name__ == "__main__":
    main()
