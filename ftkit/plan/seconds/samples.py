"""Small trainings whose steps are timed: an encoder with dropout and a decoder, of the usual shapes of a run."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ftkit.config.files import load_config
from ftkit.config.precision import Precision
from ftkit.data.batching import MicroBatch, Shape
from ftkit.engine.assemble import assemble
from ftkit.engine.protocol import Engine
from ftkit.engine.resolve import Devices, ResolvedRun, resolve
from ftkit.machine.process import ProcessContext
from ftkit.models.build import set_training
from ftkit.models.sources.source import load_config as load_architecture
from ftkit.models.sources.source import resolve_source
from ftkit.models.sources.toys import decoder, encoder, make_model
from ftkit.observe.recorded import make_batches
from ftkit.step.observer import NOTHING, Observer
from ftkit.step.step import train_step

_LAYERS = 6
"""Of an encoder: what waits for its backward has to leave the caches meanwhile, as it does in a run. In two layers
operators took a tenth less than in six (one core of a Xeon)."""


@dataclass(frozen=True)
class Sample:
    """A small training that is timed.

    Attributes:
        method: its label.
        is_decoder: a language model, else a classifier.
        width: of its layers.
        length: of the sequences of its first micro-batch.
        batch: of these; None: as many as a run has by itself, since what does not fit into the caches takes longer.
        precision: that it computes in.
        divided: by how much smaller its micro-batches are than a run's.
        is_one_of_many: and so its micro-batch of an odd length is half as large as it would be alone.
    """

    method: str
    is_decoder: bool
    width: int
    length: int
    batch: int | None = None
    precision: Precision = "auto"
    divided: int = 1
    is_one_of_many: bool = False

    def shapes(self, tokens: int) -> list[Shape]:
        """Return its micro-batches: what a call of an operator costs beside its size shows in a small one.

        The first is nearly full, as a run's are, whose texts are sorted before they are cut. One of a quarter stays in
        the caches that a large one leaves. Texts of others are padded, to twice their tokens, and come in one more
        size, about as large as the first: an odd length, as most are, makes rows of scores that kernels take no whole
        vectors of.

        Args:
            tokens: of a large one, padding included.
        """
        batch = self.batch or max(1, tokens // self.divided // self.length)
        quarter = max(1, batch // 4)
        if self.is_decoder:
            return [Shape(size, self.length) for size in (batch, quarter)] + [Shape(2, self.length // 4)]
        shorter = 5 * self.length // 8 - 3
        odd = max(1, batch * self.length // shorter // (2 if self.is_one_of_many else 1))
        sizes = ((batch, self.length), (odd, shorter), (quarter, self.length), (2, shorter // 2))
        return [Shape(*size, is_padded=True) for size in sizes]

    def __str__(self) -> str:
        """Return it in a few words."""
        return f"{self.method}, {'a decoder' if self.is_decoder else 'an encoder'} {self.width} wide, {self.precision}"


SAMPLES = (
    Sample("lora", is_decoder=False, width=384, length=128),
    Sample("lora", is_decoder=True, width=512, length=256),
    Sample("feature-extraction", is_decoder=False, width=384, length=128),
    Sample("full", is_decoder=False, width=384, length=128),
    Sample("qlora", is_decoder=True, width=512, length=256),
    Sample("full", is_decoder=True, width=512, length=256),
)
"""In the order of their use, for machines that cannot time them all."""


@dataclass(frozen=True)
class Steps:
    """A small training that can take steps.

    Attributes:
        engine: with the model.
        micro_batches: of a step, the largest first.
    """

    engine: Engine
    micro_batches: list[MicroBatch]

    def take(self, observer: Observer = NOTHING, *, taken: slice = slice(None)) -> None:
        """Take one.

        Args:
            observer: is told of its phases.
            taken: which of the micro-batches.
        """
        micro_batches = self.micro_batches[taken]
        num_targets = sum(one.labels.numel() for one in micro_batches)
        train_step(self.engine, micro_batches, num_targets, 1e-5, observer)


def stepper(sample: Sample, folder: Path) -> Steps:
    """Make the model of a sample and return what takes steps of its training, on the device of this process.

    Args:
        sample: the training.
        folder: gets the model's files.
    """
    config = decoder(sample.width) if sample.is_decoder else encoder(sample.width, _LAYERS)
    run = _resolved(sample, make_model(folder, config))
    engine = _engine(run, None if sample.is_decoder else ["a", "b"], config.pad_token_id)
    shapes = sample.shapes(run.config.batch.token_limit or sample.length)
    made = (one for shape in shapes for one in make_batches(engine.objective, shape))
    # A place of the first one is hidden, which is enough for a mask.
    micro_batches = [_ragged(one) if number and not sample.is_decoder else one for number, one in enumerate(made)]
    return Steps(engine, [one.to(engine.device) for one in micro_batches])


def _ragged(micro_batch: MicroBatch) -> MicroBatch:
    """Return sequences of all lengths up to the longest: operators take longer the more places are hidden."""
    batch, length = micro_batch.input_ids.shape
    ends = torch.arange(1, batch + 1) * length // batch
    return replace(micro_batch, attention_mask=(torch.arange(length) < ends[:, None]).long())


def _engine(run: ResolvedRun, names: list[str] | None, padding: int | None) -> Engine:
    source = resolve_source(run.config.model, run.config.task)
    engine = assemble(run, source, load_architecture(source, names, padding), ProcessContext()).engine
    set_training(engine.model, True)
    return engine


def _resolved(sample: Sample, model: Path) -> ResolvedRun:
    task = "causal-lm" if sample.is_decoder else "sequence-classification"
    settings = [
        f"method={sample.method}",
        f"task={task}",
        f"model.name={model}",
        "cache.trunk=off",
        "engine.name=plain",
        f"model.precision={sample.precision}",
    ]
    return resolve(load_config(settings=settings), Devices.of(ProcessContext()))
