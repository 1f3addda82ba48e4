"""One case: a run at a target, with all that a prediction of it starts from."""

from dataclasses import dataclass
from typing import Any

import torch

from ftkit.data.batching import Shape
from ftkit.engine.resolve import ResolvedRun
from ftkit.models.methods import method_of
from ftkit.plan.inputs.shapes import Sequences, num_checkpoints, num_steps, plan_shape
from ftkit.plan.inputs.stored import stored_dtype
from ftkit.plan.inputs.target import Target


@dataclass(frozen=True)
class Case:
    """What is predicted.

    Attributes:
        run: the run, resolved for the devices of the target.
        target: where it would compute.
        architecture: a transformers configuration of its model.
        shape: the micro-batches of one rank.
        num_steps: optimizer steps; None where neither the data nor `max_steps` says it.
        sequences: the data, or the worst that it can be.
    """

    run: ResolvedRun
    target: Target
    architecture: Any
    shape: Shape
    num_steps: int | None
    sequences: Sequences

    @classmethod
    def of(cls, run: ResolvedRun, target: Target, architecture: Any, sequences: Sequences) -> "Case":
        """Return the case of a run, with the worst micro-batch that its data can have.

        Args:
            run: the run.
            target: where it would compute.
            architecture: of its model.
            sequences: the data.

        Raises:
            ConfigError: the batch cannot be cut.
        """
        shape = plan_shape(run.config, target.num_devices, sequences)
        return cls(run, target, architecture, shape, num_steps(run.config, sequences.num), sequences)


@dataclass(frozen=True)
class Counts:
    """Weights of the deep model.

    Attributes:
        total: all of them.
        trainable: those that train.
        load_bytes: bytes in the compute dtype of what is loaded: of all but the layers that are streamed.
    """

    total: int
    trainable: int
    load_bytes: int

    @classmethod
    def of(cls, weights: dict[int | None, tuple[int, int]], dtype: torch.dtype, streamed_bytes: int = 0) -> "Counts":
        """Add up what `trace.count_weights` found, of which some bytes are streamed."""
        total, trainable = map(sum, zip(*weights.values(), strict=True))
        return cls(total, trainable, total * dtype.itemsize - streamed_bytes)


def disk_bytes(case: Case, counts: Counts) -> int:
    """Return the most that a run keeps: checkpoints (masters and moments in fp32), the best masters, and the result.

    A short run writes fewer checkpoints than may be kept. An older one may refer to a best validation that the newest
    has left behind.
    """
    training = case.run.config.training
    written = num_checkpoints(case.run.config, case.sequences.num)
    num = training.keep_checkpoints if written is None else min(training.keep_checkpoints, written)
    num_best = training.keep_best + num - 1
    return counts.trainable * (num * 12 + num_best * 4) + result_bytes(case, counts)


def result_bytes(case: Case, counts: Counts) -> int:
    """Return the bytes of the trained model: an adapter is stored as it computes, a whole model as its source is."""
    method = method_of(case.run.config)
    itemsize = case.run.dtype.itemsize if method.is_adapter else _stored_itemsize(case)
    return method.stored_parameters(counts.total, counts.trainable) * itemsize


def source_bytes(case: Case, counts: Counts) -> int:
    """Return the bytes of the files that a run reads its model from."""
    return counts.total * _stored_itemsize(case)


def _stored_itemsize(case: Case) -> int:
    """Return the bytes of a number in a model's files; where nothing says it, the most."""
    return (stored_dtype(case.run.config, case.architecture) or torch.float32).itemsize
