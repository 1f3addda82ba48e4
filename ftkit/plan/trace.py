"""The real training step on tensors without values: what it makes, when, and when that dies.

`step.train_step` runs on the plain engine, as it does in training; a Recorder watches. The model is built empty, so
that neither weights nor a GPU are needed.

Dimension letters: B batch, T token.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from ftkit import adapters, bnb, step
from ftkit.batching import MicroBatch
from ftkit.config import RunConfig
from ftkit.distributed import ProcessContext
from ftkit.engine.plain import PlainEngine
from ftkit.errors import ModelError
from ftkit.hardware import Gpu
from ftkit.memory import quiet_collector
from ftkit.model import build_empty_model, set_training
from ftkit.plan import cuda, remembered
from ftkit.plan.fake import hidden_tensors, materialize, taken_for_fake
from ftkit.plan.operators import dtype_name
from ftkit.plan.recorder import Recorder, layer_named
from ftkit.plan.shapes import Shape
from ftkit.plan.tape import BACKWARD, FORWARD, LOAD, OPTIMIZER, Tape
from ftkit.plan.visits import Visits
from ftkit.plan.zero import partitions_weights


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


class WatchedEngine:
    """An engine that tells a Recorder which phase it is in; everything else is the engine's own."""

    def __init__(self, engine: Any, recorder: Recorder) -> None:
        """Wrap `engine`."""
        self._engine = engine
        self._recorder = recorder

    def __getattr__(self, name: str) -> Any:
        """Return what the engine has."""
        return getattr(self._engine, name)

    def forward(self, micro_batch: MicroBatch, *, is_last: bool = True) -> torch.Tensor:
        """Run the engine's forward; the loss that follows counts as forward."""
        self._recorder.phase, self._recorder.layer = FORWARD, None
        logits: torch.Tensor = self._engine.forward(micro_batch, is_last=is_last)
        return logits

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> None:
        """Run the engine's backward."""
        self._recorder.mark(FORWARD)
        self._recorder.phase, self._recorder.layer = BACKWARD, None
        self._engine.backward(loss, is_last=is_last)
        self._recorder.mark(BACKWARD)
        self._recorder.micro_batch += 1

    def apply_gradients(self, learning_rate: float) -> torch.Tensor:
        """Run the engine's update."""
        self._recorder.phase, self._recorder.layer = OPTIMIZER, None
        norm: torch.Tensor = self._engine.apply_gradients(learning_rate)
        self._recorder.mark(OPTIMIZER)
        return norm


def layer_names(model: nn.Module) -> dict[str, int]:
    """Return the modules that follow one another as layers, with their numbers: the longest list of modules."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return {}
    name, longest = max(lists, key=lambda entry: len(entry[1]))
    return {f"{name}.{number}": number for number in range(len(longest))}


def count_weights(model: nn.Module, layers: dict[str, int]) -> dict[int | None, tuple[int, int]]:
    """Count the weights of a model on `meta`, where 4-bit ones are not packed yet.

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
        total[layer] += parameter.numel()
        trainable[layer] += parameter.numel() if parameter.requires_grad else 0
    return {layer: (count, trainable[layer]) for layer, count in total.items()}


def record_steps(engine: Any, micro_batches: Sequence[MicroBatch], recorder: Recorder, num_steps: int = 2) -> Tape:
    """Run `train_step` under a recorder that is already active.

    Args:
        engine: built.
        micro_batches: of each step.
        recorder: watches.
        num_steps: the first has no optimizer state yet.

    Returns:
        The recorder's tape.
    """
    watched = WatchedEngine(engine, recorder)
    num_targets = sum(micro_batch.labels.numel() for micro_batch in micro_batches)
    for number in range(1, num_steps + 1):
        recorder.step, recorder.micro_batch = number, 0
        result = step.train_step(watched, micro_batches, num_targets, 1e-4)
        del result
    return recorder.tape


def trace(  # noqa: PLR0913  # what decides a step
    config: RunConfig,
    architecture: Any,
    dtype: torch.dtype,
    shape: Shape,
    gpu: Gpu | None = None,
    *,
    device_type: str = "cuda",
    checkpointed: Sequence[bool] | None = None,
) -> Tape:
    """Trace two optimizer steps of a configuration.

    The way of a CPU is told by fake tensors, which say that they are on one, and which torch treats as such. The way
    of CUDA, where each choice of a device is put right by `cuda`, is told by tensors on `meta`: the same events three
    times as fast; by fake tensors for a model that does what `meta` cannot.

    Args:
        config: the run.
        architecture: a transformers configuration of its model.
        dtype: what weights and activations compute in.
        shape: the micro-batches.
        gpu: decides between kernels; None: a recent one.
        device_type: `cuda` or `cpu`: whose way of computing.
        checkpointed: for each layer whether it recomputes; None: as the configuration says.

    Returns:
        The tape.

    Raises:
        UntraceableModelError: the model's code reads values back in its forward; the line is named.
        ModelError: the model's own code does not compute in `dtype`.
    """
    if dtype == torch.float16 and config.optimizer.name != "adamw":
        dtype = torch.bfloat16  # as many bytes; torch's loss scaler reads a flag back, unless the optimizer is fused

    def run(tensors: ValuelessTensors) -> Tape:
        model = build_empty_model(config, architecture, dtype)
        layers = layer_names(model)
        weights = count_weights(model, layers)
        materialize(model, tensors.mode, tensors.process.device)
        for name, recomputes in zip(layers, checkpointed or (), strict=False):
            # What set_checkpointing sets (transformers.modeling_layers.GradientCheckpointingLayer).
            vars(model.get_submodule(name))["gradient_checkpointing"] = recomputes
        on_cuda = device_type == "cuda"
        recorder = Recorder(cuda.storage_size, cuda.scratch_size, call=tensors.call) if on_cuda else Recorder()
        recorder.tape.weights = weights
        with contextlib.ExitStack() as stack:
            for context in (quiet_collector(), tensors.mode, taken_for_fake(), cuda.unpacked_batches()):
                stack.enter_context(context)
            if on_cuda:
                stack.enter_context(cuda.cuda_semantics(gpu))
            if config.optimizer.name != "adamw":
                stack.enter_context(bnb.without_values())
            stack.enter_context(recorder.inside(model, layers))
            see_model(recorder, model, layers)
            held = workspaces(gpu) if on_cuda else []
            visits = Visits(recorder, model, layers) if partitions_weights(config) else None
            recorder.see(held, "buffer")
            vars(model)["to"] = lambda _: model  # tensors without values are where they belong, and cannot be moved
            engine = PlainEngine(config, model, tensors.process, dtype)
            if visits is not None:
                visits.engine_is_built()
            set_training(model, True)
            recorder.mark(LOAD)
            micro_batches = make_batches(config.task, shape)
            recorder.see(batch_tensors(micro_batches), "input")
            with _explained(type(adapters.unwrapped(model)).__name__, dtype):
                return record_steps(engine, micro_batches, recorder)

    if device_type == "cuda":
        with contextlib.suppress(RuntimeError):  # no operator for `meta`, or a value that is read: fake tensors tell
            return run(meta_tensors())
    return run(fake_tensors())


@contextlib.contextmanager
def _explained(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Say of a model's code what it does that a plan cannot follow, or that it cannot do itself."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UntraceableModelError(_explain(name, error)) from error
    except RuntimeError as error:
        if "expected scalar type" not in str(error):
            raise
        # Its code makes some weights of a dtype of its own, and transformers loads them so.
        raise ModelError(f"{name} does not compute in {dtype_name(dtype)} ({error}); try --precision fp32") from error


@dataclass(frozen=True)
class ValuelessTensors:
    """A kind of tensors without values.

    Attributes:
        process: whose device they say that they are on.
        mode: the mode or device in which they are made.
        call: runs an operator on them; None: torch does.
    """

    process: ProcessContext
    mode: Any
    call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None = None


def fake_tensors() -> ValuelessTensors:
    """Return the kind that is taken for tensors of the CPU."""
    return ValuelessTensors(LocalProcess(), FakeTensorMode(allow_non_fake_inputs=True))


def meta_tensors() -> ValuelessTensors:
    """Return the kind that is on no device."""
    return ValuelessTensors(MetaProcess(), torch.device("meta"), remembered.call)


def workspaces(gpu: Gpu | None) -> list[tuple[str, torch.Tensor]]:
    """Return cuBLAS's workspaces, which torch keeps from the first matrix product to the end."""
    size = cuda.cublas_workspace(gpu)
    return [("cuBLAS workspace", torch.empty(size, dtype=torch.uint8)) for _ in range(cuda.NUM_WORKSPACES)]


def see_model(recorder: Recorder, model: nn.Module, layers: dict[str, int]) -> None:
    """Write a model's tensors on the tape."""
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    recorder.see(trainable, "trainable", layers)
    recorder.see(model.named_parameters(), "parameter", layers)
    recorder.see(hidden_tensors(model).items(), "constant", layers)
    recorder.see(model.named_buffers(), "buffer", layers)


def make_batches(task: str, shape: Shape) -> list[MicroBatch]:
    """Return micro-batches of a shape, all of token 1; with a mask where sequences are padded.

    Args:
        task: decides the shape of the labels.
        shape: sizes.

    Returns:
        The micro-batches of one step.
    """
    made = []
    for _ in range(shape.num_micro_batches):
        ids_BT = torch.ones(shape.batch, shape.length, dtype=torch.int64)
        labels = ids_BT.clone() if task == "causal-lm" else torch.zeros(shape.batch, dtype=torch.int64)
        mask_BT = None
        if shape.is_padded:
            mask_BT = torch.ones_like(ids_BT)
            mask_BT[:, -1] = 0
        made.append(MicroBatch(ids_BT, labels, mask_BT))
    return made


def batch_tensors(micro_batches: Sequence[MicroBatch]) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors of micro-batches, with names."""
    return [
        (f"micro-batch {number} {name}", tensor)
        for number, micro_batch in enumerate(micro_batches)
        for name, tensor in [*micro_batch.inputs().items(), ("labels", micro_batch.labels)]
    ]


def _explain(name: str, error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    own = [frame for frame in frames if "/ftkit/" not in frame.filename] or frames
    place = f"{own[-1].filename}:{own[-1].lineno} ({own[-1].line})"
    return f"{name} reads values back in its forward at {place}, so its step cannot be traced without them"
