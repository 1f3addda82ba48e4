"""ZeRO stages 1 to 3 with offload; the only importer of deepspeed."""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import distributed, nn

from ftkit.config.training import OptimizerConfig
from ftkit.data.batching import MicroBatch
from ftkit.engine import foreign
from ftkit.engine.ds_config import measure_sizes
from ftkit.engine.jit_watch import watched_compiling
from ftkit.engine.optim import build_optimizer, parameter_groups
from ftkit.engine.pace import HeldUpdate, Pace
from ftkit.engine.protocol import Part, Parts, Tensors, explained_standstill
from ftkit.engine.released_weights import ReleasedWeights
from ftkit.engine.resolve import ResolvedRun
from ftkit.engine.undone_step import forget_step
from ftkit.errors import DependencyError, DeviceError
from ftkit.machine.foreign import TorchSays
from ftkit.machine.process import ProcessContext
from ftkit.models.build import trainable_parameters
from ftkit.models.objective import Objective
from ftkit.models.partitions import own_tensors, whole_numel, whole_shape
from ftkit.records.figures import Kind

_MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine:
    """A model under `deepspeed.initialize`."""

    name = "deepspeed"

    def __init__(self, run: ResolvedRun, model: nn.Module, process: ProcessContext, objective: Objective) -> None:
        """Partition what the stage partitions; see `build_engine`."""
        deepspeed = _import()
        self.process, self.device, self.dtype, self.model = process, process.device, run.dtype, model
        self.objective = objective
        self._num_to_come = 0
        self.settings = run.deepspeed_dict(measure_sizes(model))
        self._is_partitioned = self.shares_forwards = run.partitions_weights
        foreign.forget_ended_groups(deepspeed)
        watch = watched_compiling() if process.local_rank == 0 else contextlib.nullcontext()
        with _explained(), _hushed(), foreign.keeping_linear(), foreign.without_inference_messages(), watch:
            if self._is_partitioned:
                deepspeed.init_distributed(dist_init_required=False)  # Init asks it for the number of ranks
                # One weight after another goes to its owners, so that no device ever holds the model whole.
                deepspeed.zero.Init(module=model, config_dict_or_path=self.settings, dtype=run.dtype)
            self._parameters = trainable_parameters(model)
            optimizer = self._optimizer(run.config.optimizer)
            self._update = HeldUpdate(optimizer)
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=self.settings, dist_init_required=False
            )
        backend = foreign.communication(deepspeed)
        self._pace = Pace(model, self._engine.optimizer, backend, is_partitioned=self._is_partitioned)
        self._saving = ReleasedWeights(model) if self._is_partitioned else contextlib.nullcontext()

    def begin_step(self, num_micro_batches: int) -> None:
        """Count down to the last micro-batch, after which gradients are final."""
        self._num_to_come = num_micro_batches
        self._pace.expect_pass()

    def rewind(self) -> int:
        """Return to the start of the pass in which memory ran out; see `pace.py`."""
        self._pace.rewind()
        return self._num_to_come

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return the loss summed over the targets of a micro-batch."""
        self._engine.set_gradient_accumulation_boundary(self._num_to_come <= 1)
        return self.objective.loss_sum(self._forward, micro_batch)

    def logits(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self._forward(**micro_batch.inputs()).logits
        return logits

    def groups(self, micro_batches: Sequence[MicroBatch]) -> Iterator[Sequence[MicroBatch]]:
        """Yield each micro-batch alone."""
        return ([one] for one in micro_batches)

    def losses(self, group: Sequence[MicroBatch]) -> Sequence[torch.Tensor]:
        """Return the loss of each micro-batch."""
        return [self.loss(one) for one in group]

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to the sums, which DeepSpeed averages over the ranks."""
        self._engine.set_gradient_accumulation_boundary(self._num_to_come <= 1)
        self._engine.backward(loss * self.process.world_size, scale_wrt_gas=False)
        self._num_to_come -= 1
        self._pace.expect_pass()

    def discard_gradients(self) -> None:
        """Drop the sums, wherever the stage keeps them."""
        forget_step(self._engine.optimizer, self._parameters.values(), is_partitioned=self._is_partitioned)

    def apply_gradients(self, learning_rate: float) -> torch.Tensor:
        """Clip, update, clear."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        with explained_standstill(self.process):
            self._engine.step()
        self._update.check()
        return torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)

    def reset_optimizer(self) -> None:
        """Set moments and step counts to zero, as they are made, and the loss scale to its first value."""
        zeros = {key: torch.zeros_like(value) for key, value in self.optimizer_state().items()}
        first_scale = 2.0 ** self.settings.get("fp16", {}).get("initial_scale_power", 0)
        self.load_optimizer_state(zeros | ({"loss_scale/": torch.tensor(first_scale)} if zeros else {}))

    def sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks."""
        distributed.all_reduce(value)
        return value

    def trainable_state(self, *, copy: bool = True) -> Tensors:  # noqa: ARG002  # what is gathered is a copy
        """Return the fp32 masters, gathered one by one."""
        return {name: self._gathered_master(one) for name, one in self._parameters.items()}

    def load_trainable_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the masters, and the weights from them."""
        for name, parameter in self._parameters.items():
            self._load(parameter, state[name])

    def optimizer_state(self, *, copy: bool = True) -> Tensors:  # noqa: ARG002  # what is gathered is a copy
        """Return the moments, gathered one by one."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = self._step_count()
        if step is None:
            return {}
        if not self._is_partitioned:
            foreign.link_moments(self._engine.optimizer)
        tensors = self._numbers(step)
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                tensors[f"{name}/{moment}"] = foreign.as_whole(
                    safe_get_full_optimizer_state(parameter, moment), parameter
                )
        return tensors

    def trainable_parts(self) -> Parts:
        """Return this rank's parts of the masters."""
        from deepspeed.utils import safe_get_local_fp32_param

        return {
            name: self._part(one, partial(safe_get_local_fp32_param, one)) for name, one in self._parameters.items()
        }

    def optimizer_parts(self) -> Parts:
        """Return this rank's parts of the moments; the first rank has the numbers."""
        from deepspeed.utils import safe_get_local_optimizer_state

        step = self._step_count()
        if step is None:
            return {}
        numbers = self._numbers(step) if self.process.is_main else {}
        parts = {name: Part((), 0, 1, partial(torch.flatten, one)) for name, one in numbers.items()}
        for name, one in self._parameters.items():
            for moment in _MOMENTS:
                parts[f"{name}/{moment}"] = self._part(one, partial(safe_get_local_optimizer_state, one, moment))
        return parts

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the moments; they are made first where no step has been taken."""
        step = next((value for key, value in state.items() if key.endswith("/step")), None)
        if step is None:
            return
        zero = self._engine.optimizer
        for partition in foreign.flat_masters(self._engine.optimizer):
            zero.optimizer.state[partition] = {
                "step": int(step)
                if foreign.counts_steps_in_python(zero.optimizer)
                else step.float().to(partition.device, copy=True),
                **{moment: torch.zeros_like(partition) for moment in _MOMENTS},
            }
        if not self._is_partitioned:
            foreign.link_moments(self._engine.optimizer)
        for name, parameter in self._parameters.items():
            for moment in _MOMENTS:
                self._set(parameter, state[f"{name}/{moment}"], moment)
        if "loss_scale/" in state and self.dtype == torch.float16:
            foreign.set_loss_scale(zero, float(state["loss_scale/"]), int(state.get("loss_scale/clean_steps", 0)))

    def held_tensors(self) -> Iterator[tuple[Kind, torch.Tensor]]:
        """Yield what lives between two steps, each with the part of a breakdown that DeepSpeed's name for it says."""
        for parameter in self.model.parameters():
            yield Kind.PARAMETER, foreign.own_part(parameter)
        yield from foreign.held_tensors(self._engine.optimizer)

    def round_trainable(self, dtype: torch.dtype) -> None:
        """Round the masters one after another, and the weights with them."""
        for parameter in self._parameters.values():
            self._load(parameter, self._gathered_master(parameter).to(dtype))

    def weights(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield weights, each gathered when it is asked for."""
        if self._is_partitioned:
            foreign.finish_gathers(self._engine.optimizer)
        tensors = own_tensors(self.model)
        for name in names:
            trained = self._parameters.get(name)
            yield name, self._gathered(tensors[name]) if trained is None else self._gathered_master(trained)

    def _forward(self, **inputs: torch.Tensor) -> Any:
        with self._saving:
            return self._engine(**inputs)

    def _optimizer(self, config: OptimizerConfig) -> torch.optim.Optimizer:
        if "offload_optimizer" not in self.settings["zero_optimization"]:
            return build_optimizer(self._parameters, config)
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        groups = parameter_groups(self._parameters, config.weight_decay)
        adam = DeepSpeedCPUAdam(groups, lr=0.0, betas=config.betas, eps=config.epsilon, adamw_mode=True)
        return cast(torch.optim.Optimizer, adam)

    def _step_count(self) -> torch.Tensor | None:
        states = [
            self._engine.optimizer.optimizer.state.get(partition)
            for partition in foreign.flat_masters(self._engine.optimizer)
        ]
        return next((torch.as_tensor(float(one["step"])) for one in states if one and "step" in one), None)

    def _numbers(self, step: torch.Tensor) -> Tensors:
        """Return what an optimizer's state has of single numbers."""
        numbers = {f"{name}/step": step.clone() for name in self._parameters}
        if self.dtype == torch.float16:
            numbers["loss_scale/"] = torch.tensor(float(self._engine.optimizer.loss_scale))
            numbers["loss_scale/clean_steps"] = torch.tensor(float(foreign.num_clean_steps(self._engine.optimizer)))
        return numbers

    def _part(self, parameter: nn.Parameter, read: Callable[[], torch.Tensor]) -> Part:
        """Return this rank's part of a partitioned tensor, without the padding of the last one."""
        whole, size = whole_numel(parameter), foreign.part_numel(parameter)
        start = min(size * self.process.rank, whole)
        numel = min(size, whole - start)
        return Part(tuple(whole_shape(parameter)), start, numel, lambda: read().detach()[:numel].float().cpu())

    def _gathered_master(self, parameter: nn.Parameter) -> torch.Tensor:
        from deepspeed.utils import safe_get_full_fp32_param

        return foreign.as_whole(safe_get_full_fp32_param(parameter), parameter)

    def _gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        from deepspeed import zero

        with zero.GatheredParameters([tensor]) if foreign.is_partitioned(tensor) else contextlib.nullcontext():
            return tensor.detach().to("cpu", copy=True)

    def _load(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Set a master, and the weight from it."""
        self._set(parameter, value)
        with torch.no_grad():
            if self._is_partitioned:
                foreign.own_part(parameter).copy_(self._own_part(parameter, value))
            if parameter.numel() == value.numel():
                parameter.copy_(value.view_as(parameter))

    def _set(self, parameter: nn.Parameter, value: torch.Tensor, moment: str | None = None) -> None:
        """Set a master, or one of its moments, from a whole tensor."""
        from deepspeed import utils

        value = value.to(self.device, torch.float32)
        if not self._is_partitioned:
            if moment is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, moment)
            return
        # The whole-tensor setters of ZeRO-3 fail where the last partition is padded; the local ones do not.
        part = self._own_part(parameter, value)
        if moment is None:
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_local_optimizer_state(parameter, part, moment)

    def _own_part(self, parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        size = foreign.part_numel(parameter)
        padded = nn.functional.pad(value.flatten(), (0, size * self.process.world_size - value.numel()))
        return padded[size * self.process.rank : size * (self.process.rank + 1)]


def _import() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise DependencyError(f"ZeRO needs DeepSpeed ({error}): pip install deepspeed") from None
    return deepspeed


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep what DeepSpeed prints while it compiles and loads its operations; FTKIT_VERBOSE=1 lets it through."""
    with contextlib.nullcontext() if os.environ.get("FTKIT_VERBOSE") else contextlib.redirect_stdout(io.StringIO()):
        yield


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what DeepSpeed says of a machine that cannot do it into one sentence."""
    try:
        yield
    except ValueError as error:
        if foreign.DeepSpeedSays.NO_SUCH_PRECISION in str(error):
            raise DeviceError(f"DeepSpeed: {error}; choose another model.precision") from error
        raise
    except RuntimeError as error:
        if foreign.DeepSpeedSays.NO_COMPILER in str(error) or TorchSays.NO_EXTENSION in str(error):
            raise DependencyError(
                "offload needs a compiler for DeepSpeed's extensions (g++ and ninja; libaio-dev for nvme): install "
                f"them, or leave offload out ({str(error).splitlines()[0]})"
            ) from error
        raise
