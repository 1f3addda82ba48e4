"""What measuring costs: the same steps with and without the meter, side by side.

    python benchmarks/measurement_cost.py [--rounds 15] [--steps 8]

One process trains the embedded MiniLM with LoRA. Blocks of steps take turns, metered and bare, on the same batches; the
ratio is that of the medians. The quartiles of the blocks say how much of it is noise. Beside it stands the time of the
meter's own calls alone, which no neighbour on the machine disturbs.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from ftkit.config import files as config_io
from ftkit.data import batching
from ftkit.data.prepare import prepare_data
from ftkit.engine.assemble import assemble
from ftkit.engine.protocol import Engine
from ftkit.engine.resolve import Devices, resolve
from ftkit.machine.process import ProcessContext
from ftkit.models.build import set_training
from ftkit.models.sources.source import load_config, load_tokenizer, own_label_names, resolve_source
from ftkit.observe.meter import Meter
from ftkit.step.observer import NOTHING, Observer, Phase
from ftkit.step.step import train_step


@dataclass
class Training:
    """Steps on the embedded default."""

    engine: Engine
    batches: list[list[batching.MicroBatch]]

    @classmethod
    def prepare(cls, num_batches: int) -> "Training":
        """Load data and model and cut some batches."""
        config = config_io.load_config(settings=["data.max_train_samples=2000"])
        process = ProcessContext()
        run = resolve(config, Devices.of(process))
        source = resolve_source(config.model, config.task)
        tokenizer = load_tokenizer(source)
        data = prepare_data(config.data, config.task, tokenizer, 0, own_label_names(source))
        architecture = load_config(source, data.label_names, tokenizer.pad_token_id)
        engine = assemble(run, source, architecture, process).engine
        set_training(engine.model, True)
        padding = batching.Padding(tokenizer.pad_token_id)
        wanted = batching.global_batches(len(data.train), config.batch.global_batch_size, 0, num_batches)
        return cls(
            engine,
            [
                [
                    batching.collate(data.train, batch.indices[places], padding, process.device)
                    for places in batching.cut(data.train.lengths[batch.indices], config.batch, 1)[0]
                ]
                for batch in wanted
            ],
        )

    def seconds(self, observer: Observer) -> float:
        """Take a step on each batch; return the time."""
        started = time.perf_counter()
        for micro_batches in self.batches:
            train_step(self.engine, micro_batches, sum(len(one.labels) for one in micro_batches), 1e-4, observer)
        return time.perf_counter() - started


def call_seconds(meter: Meter, num_steps: int) -> float:
    """Return the time that the meter's own calls take in a step of two micro-batches, on average."""
    started = time.perf_counter()
    for _ in range(num_steps):
        for phase in (Phase.FORWARD, Phase.BACKWARD, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER):
            with meter.during(phase):
                pass
    return (time.perf_counter() - started) / num_steps


def main() -> None:
    """Take turns and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    training = Training.prepare(arguments.steps)
    meter = Meter(torch.device("cpu"))
    training.seconds(NOTHING)  # warm up
    training.seconds(meter)
    pairs = np.array([(training.seconds(NOTHING), training.seconds(meter)) for _ in range(arguments.rounds)])
    bare, measured = np.median(pairs, axis=0) / arguments.steps
    low, high = np.percentile(pairs[:, 1] / pairs[:, 0] - 1, [25, 75])
    own = call_seconds(meter, 160)
    print(f"a step bare {bare * 1e3:.1f} ms, metered {measured * 1e3:.1f} ms: {measured / bare - 1:+.2%}")
    print(f"quartiles over {arguments.rounds} rounds: {low:+.2%} to {high:+.2%}")
    print(f"the meter's own calls: {own * 1e3:.3f} ms a step, {own / bare:.2%} of it")


if __name__ == "__main__":
    main()
