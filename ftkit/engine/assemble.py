"""Put a resolved run together: the model, its counts, and the engine that it trains on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ftkit.engine.protocol import Engine
from ftkit.engine.resolve import EngineKind, ResolvedRun
from ftkit.machine.process import ProcessContext
from ftkit.models.build import build_model, count_parameters, trainable_parameters
from ftkit.models.objective import Objective, objective_of
from ftkit.models.sources.source import Source


@dataclass(frozen=True)
class Counts:
    """The weights of a model, before any of them is partitioned.

    Attributes:
        total: all of them, packed ones counted one by one.
        trainable: those that train.
    """

    total: int
    trainable: int

    @classmethod
    def of(cls, model: nn.Module) -> "Counts":
        """Count the weights of what `build_model` returned."""
        return cls(count_parameters(model), sum(one.numel() for one in trainable_parameters(model).values()))


@dataclass(frozen=True)
class Assembled:
    """A run that is ready to take steps.

    Attributes:
        model: what was loaded and prepared for its method.
        engine: holds the model and its optimizer.
        counts: of the model.
    """

    model: nn.Module
    engine: Engine
    counts: Counts


def assemble(
    run: ResolvedRun,
    source: Source,
    architecture: Any,
    process: ProcessContext,
    before_engine: Callable[[nn.Module], None] = lambda _: None,
) -> Assembled:
    """Load the model of a run and put it onto its device or devices.

    Args:
        run: the run.
        source: where the weights are.
        architecture: what `load_config` returned.
        process: the place of this process; its group has been joined.
        before_engine: called with the model on the CPU, before the engine moves or partitions it.

    Returns:
        Model, engine and counts.

    Raises:
        ModelError: the weights cannot be loaded, or the model is not for this task or method.
        DeviceError: the engine does not run on this machine.
    """
    model = build_model(run.config, source, architecture, run.dtype, process=process)
    counts = Counts.of(model)
    before_engine(model)
    objective = objective_of(run.config, architecture, model)
    return Assembled(model, build_engine(run, model, process, objective), counts)


def build_engine(run: ResolvedRun, model: nn.Module, process: ProcessContext, objective: Objective) -> Engine:
    """Put a model that is ready to train onto its device or devices.

    Args:
        run: the run.
        model: what `build_model` returned, on the CPU.
        process: the place of this process; its group has been joined.
        objective: what the model is trained for.

    Returns:
        The engine.
    """
    if run.engine is EngineKind.DEEPSPEED:
        from ftkit.engine.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(run, model, process, objective)
    from ftkit.engine.plain import PlainEngine

    return PlainEngine(run.config, model, process, run.dtype, objective)
