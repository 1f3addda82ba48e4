"""The processor seconds of a step on this machine's CPU beside those that are planned.

    ftkit doctor --calibrate
    OMP_NUM_THREADS=1 python -m benchmarks.cpu_seconds [--precision bf16 fp32] [SETTINGS ...]

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
from dataclasses import replace

import torch

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


def main() -> None:
    """Print the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", default=CONFIGURATIONS)
    parser.add_argument("--precision", nargs="+", default=["auto"])
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.alone:
        keep_heap_whole()
        print(json.dumps(measured(asked.settings[0])))
        return
    assert torch.get_num_threads() == 1, "processor seconds of several threads are no time; set OMP_NUM_THREADS=1"
    errors: list[float] = []
    print("| run | precision | measured | planned | error |\n|---|---|---:|---:|---:|")
    for precision in asked.precision:
        for settings in asked.settings:
            whole = f"{USUAL} model.precision={precision} {settings}"
            planned = predict(config_of(whole), find_target("cpu")).step_seconds
            assert planned is not None, settings
            seconds = measured_alone(whole)
            errors.append(planned / seconds - 1)
            print(f"| {settings} | {precision} | {seconds:.3g} s | {planned:.3g} s | {errors[-1]:+.1%} |", flush=True)
    print(f"\nmedian {statistics.median(errors):+.1%}, of the sizes {statistics.median(map(abs, errors)):.1%}")


if __name__ == "__main__":
    main()
