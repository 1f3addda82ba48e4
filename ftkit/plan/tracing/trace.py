"""Run the real training step on tensors without values, and record what it makes and when that dies.

`step.train_step` runs on the plain engine, as it does in training; a Recorder watches. The model is built empty, so
that neither weights nor a GPU are needed.

Dimension letters: B batch, T token.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from ftkit.config.recompute import Level
from ftkit.config.tree import RunConfig
from ftkit.data.batching import Shape
from ftkit.engine.plain import PlainEngine
from ftkit.errors import ModelError
from ftkit.machine.foreign import TorchSays
from ftkit.machine.hardware import Gpu
from ftkit.machine.memory import quiet_collector
from ftkit.machine.process import ProcessContext
from ftkit.models import bnb
from ftkit.models.activations.recompute import set_level
from ftkit.models.build import build_empty_model, check_positions, num_weights, set_training
from ftkit.models.kernels.dropout import keep_masks
from ftkit.models.kernels.lora_linear import make_plain
from ftkit.models.kernels.seeded_attention import keep_scores
from ftkit.models.kernels.unpadded import is_unpadded
from ftkit.models.methods import lora
from ftkit.models.methods.lora import unwrapped
from ftkit.models.objective import objective_of
from ftkit.models.streaming.stream import place
from ftkit.models.trunk.closed import close
from ftkit.models.trunk.cut import Cut, find_cut
from ftkit.observe.attribution import layer_named
from ftkit.observe.operators import dtype_name
from ftkit.observe.recorded import (
    Given,
    batch_tensors,
    layer_names,
    make_batches,
    record_steps,
    record_trunk,
    see_model,
)
from ftkit.observe.recorder import Recorder
from ftkit.observe.tape import Role, Tape
from ftkit.plan.tracing import cuda, foreign, layout_cache
from ftkit.plan.tracing.fake import materialize
from ftkit.plan.zero.module_events import Visits
from ftkit.step.observer import Phase

Traced = TypeVar("Traced")


class UntraceableModelError(ModelError):
    """A model whose code reads values, which a plan does not have."""


class LocalProcess(ProcessContext):
    """A process alone, on the CPU whatever else the machine has: fake tensors live there."""

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")


class MetaProcess(ProcessContext):
    """A process alone whose tensors are on `meta`."""

    @property
    def device(self) -> torch.device:
        """No device at all."""
        return torch.device("meta")


def count_weights(model: nn.Module, layers: dict[str, int]) -> dict[int | None, tuple[int, int]]:
    """Count the weights of a model on `meta`.

    Args:
        model: as `build_empty_model` returns it.
        layers: module name of a layer to its number.

    Returns:
        Layer, or None for outside the layers, to (all weights, those that train).
    """
    total: Counter[int | None] = Counter()
    trainable: Counter[int | None] = Counter()
    for name, parameter in model.named_parameters():
        layer = layer_named(name, layers)
        total[layer] += num_weights(parameter)
        trainable[layer] += num_weights(parameter) if parameter.requires_grad else 0
    return {layer: (count, trainable[layer]) for layer, count in total.items()}


@dataclass(frozen=True)
class ValuelessTensors:
    """A kind of tensors without values.

    Attributes:
        process: whose device they say that they are on.
        mode: the mode or device in which they are made.
        call: runs an operator on them.
    """

    process: ProcessContext
    mode: Any
    call: layout_cache.Call


def fake_tensors() -> ValuelessTensors:
    """Return the kind that is taken for tensors of the CPU."""
    mode = foreign.fake_mode()
    return ValuelessTensors(LocalProcess(), mode, layout_cache.call_on_fake(mode))


def meta_tensors() -> ValuelessTensors:
    """Return the kind that is on no device."""
    return ValuelessTensors(MetaProcess(), torch.device("meta"), layout_cache.call_on_meta)


def trace(  # noqa: PLR0913  # what decides a step
    config: RunConfig,
    architecture: Any,
    dtype: torch.dtype,
    shape: Shape,
    gpu: Gpu | None = None,
    *,
    device_type: str = "cuda",
    levels: Sequence[Level] | None = None,
    sees_modules: bool = False,
    given: Given | None = None,
) -> Tape:
    """Trace two optimizer steps of a configuration.

    A CPU's step runs on fake tensors, which say that they are on one, and which torch treats as such. CUDA's step, in
    which `cuda` corrects each choice of a device, runs on tensors on `meta`: the same events in half the
    time. A model that does what `meta` cannot runs on fake tensors there too.

    Args:
        config: the run.
        architecture: a transformers configuration of its model.
        dtype: what weights and activations compute in.
        shape: the micro-batches.
        gpu: decides between kernels; None: a recent one.
        device_type: `cuda` or `cpu`: whose way of computing.
        levels: for each layer what it recomputes; None: as the configuration says.
        sees_modules: note when each module begins and ends, which is when ZeRO-3 gathers and releases its weights.
        given: what the model is given in the place of its frozen trunk; None: it runs whole.

    Returns:
        The tape.

    Raises:
        UntraceableModelError: the model's code reads values back in its forward; the line is named.
        ModelError: the model's own code does not compute in `dtype`.
        ConfigError: the sequences are longer than the model's table of positions.
    """
    on_cuda = device_type == "cuda"
    step = _Step(config, architecture, dtype, shape, gpu, on_cuda, levels or (), sees_modules, given)
    return step.on_tensors(step.trace)


def trace_trunk(
    config: RunConfig,
    architecture: Any,
    dtype: torch.dtype,
    shape: Shape,
    gpu: Gpu | None = None,
    *,
    device_type: str = "cuda",
) -> tuple[Tape, Cut]:
    """Trace one micro-batch of the pass that runs the frozen trunk once.

    Args:
        config: the run.
        architecture: a transformers configuration of its model.
        dtype: what weights and activations compute in.
        shape: the micro-batch.
        gpu: decides between kernels; None: a recent one.
        device_type: `cuda` or `cpu`: whose way of computing.

    Returns:
        The tape, and where the trunk ends.

    Raises:
        UntraceableModelError: the model's code reads values back in its forward; the line is named.
        ModelError: nothing is frozen below what trains, or the model's structure does not allow a cut.
    """
    step = _Step(config, architecture, dtype, shape, gpu, device_type == "cuda", (), False)
    return step.on_tensors(step.trace_trunk)


@dataclass(frozen=True)
class _Step:
    """The step that is traced; see `trace`."""

    config: RunConfig
    architecture: Any
    dtype: torch.dtype
    shape: Shape
    gpu: Gpu | None
    on_cuda: bool
    levels: Sequence[Level]
    sees_modules: bool
    given: Given | None = None

    def on_tensors(self, trace: Callable[[ValuelessTensors], Traced]) -> Traced:
        """Trace on the kind of tensors that is quickest."""
        if self.on_cuda:
            try:
                return trace(meta_tensors())
            except (RuntimeError, TypeError) as error:
                if not foreign.meta_cannot(error):
                    raise
        return trace(fake_tensors())

    def trace_trunk(self, tensors: ValuelessTensors) -> tuple[Tape, Cut]:
        """Run the trunk over a micro-batch on a kind of tensors."""
        model, layers, recorder = self._built(tensors)
        objective = objective_of(self.config, self.architecture, model)
        with self._without_values(tensors, model, recorder), _explained(type(unwrapped(model)).__name__, self.dtype):
            (micro_batch,) = make_batches(objective, replace(self.shape, num_micro_batches=1))
            place(model, tensors.process.device)  # streamed layers run below the cut, too
            cut = find_cut(model, micro_batch, has_values=False)
            with recorder.inside(model, layers):
                see_model(recorder, model, layers)
                held = workspaces(self.gpu) if self.on_cuda else []
                recorder.see(held, Role.BUFFER)
                recorder.mark(Phase.LOAD)
                return record_trunk(model, cut, micro_batch, recorder), cut

    def trace(self, tensors: ValuelessTensors) -> Tape:
        """Run two steps on a kind of tensors."""
        model, layers, recorder = self._built(tensors)
        with self._without_values(tensors, model, recorder), recorder.inside(model, layers):
            place(model, tensors.process.device)
            see_model(recorder, model, layers)
            held = workspaces(self.gpu) if self.on_cuda else []
            if self.sees_modules:
                make_plain(model)  # as the lean layers themselves do where weights are partitioned
            visits = Visits(recorder, model, layers) if self.sees_modules else None
            recorder.see(held, Role.BUFFER)
            # Not what `assemble` builds: DeepSpeed computes with values, so its runs are traced on this engine too, and
            # `plan.zero` rewrites the tape; and the model is here already, empty and watched.
            engine = PlainEngine(
                self.config, model, tensors.process, self.dtype, objective_of(self.config, self.architecture, model)
            )
            if visits is not None:
                visits.engine_is_built()
            set_training(model, True)
            recorder.mark(Phase.LOAD)
            micro_batches = make_batches(engine.objective, self.shape, self.given)
            recorder.see(batch_tensors(micro_batches), Role.INPUT)
            with _explained(type(unwrapped(model)).__name__, self.dtype):
                return record_steps(engine, micro_batches, recorder)

    def _built(self, tensors: ValuelessTensors) -> tuple[nn.Module, dict[str, int], Recorder]:
        """Return the model with tensors of a kind, the names of its layers, and who watches it."""
        model = build_empty_model(self.config, self.architecture, self.dtype)
        check_positions(model, self.shape.length)
        layers = layer_names(model)
        recorder = self._recorder(tensors)
        recorder.tape.weights = count_weights(model, layers)
        materialize(model, tensors.mode, tensors.process.device)
        for name, level in zip(layers, self.levels, strict=False):
            set_level(model.get_submodule(name), level)
        foreign.stay(model)
        if self.on_cuda:
            keep_masks(model)  # fake tensors say that they are on a CPU
            keep_scores(unwrapped(model))
        recorder.tape.unpadded = is_unpadded(model)
        return model, layers, recorder

    def _recorder(self, tensors: ValuelessTensors) -> Recorder:
        if not self.on_cuda:
            return Recorder(call=tensors.call)
        return Recorder(cuda.storage_size, lambda op, args: cuda.scratch_size(op, args, self.gpu), call=tensors.call)

    @contextlib.contextmanager
    def _without_values(self, tensors: ValuelessTensors, model: nn.Module, recorder: Recorder) -> Iterator[None]:
        """Let libraries do without the values that they would look at."""
        with contextlib.ExitStack() as stack:
            replacements = foreign.taken_for_fake(), foreign.unpacked_batches(), foreign.grouped_products()
            for context in (quiet_collector(), tensors.mode, *replacements):
                stack.enter_context(context)
            if self.on_cuda:
                stack.enter_context(cuda.cuda_semantics(self.gpu, recorder.chose))
            if self.config.optimizer.name != "adamw":
                stack.enter_context(bnb.without_values())
                stack.enter_context(foreign.every_update_taken())
            if lora.is_adapted(model):
                stack.enter_context(lora.without_values())
            if self.given is not None:
                close(model, self.given.cut)  # for good
            yield


@contextlib.contextmanager
def _explained(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Say of a model's code what it does that a plan cannot follow, or that it cannot do itself."""
    try:
        yield
    except RuntimeError as error:
        if foreign.needs_values(error):
            raise UntraceableModelError(_explain(name, error)) from error
        if TorchSays.OTHER_DTYPE not in str(error):
            raise
        # Its code makes some weights of a dtype of its own, and transformers loads them so.
        raise ModelError(f"{name} does not compute in {dtype_name(dtype)} ({error}); try --precision fp32") from error


def workspaces(gpu: Gpu | None) -> list[tuple[str, torch.Tensor]]:
    """Return cuBLAS's workspaces, which torch keeps from the first matrix product to the end."""
    size = cuda.cublas_workspace(gpu)
    return [("cuBLAS workspace", torch.empty(size, dtype=torch.uint8)) for _ in range(cuda.NUM_WORKSPACES)]


def _explain(name: str, error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    last = ([frame for frame in frames if "/ftkit/" not in frame.filename] or frames)[-1]
    place = f"{last.filename}:{last.lineno} ({last.line})"
    return f"{name} reads values back in its forward at {place}, so its step cannot be traced without them"
