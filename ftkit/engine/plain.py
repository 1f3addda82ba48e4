"""torch on one device, or one process per device with summed gradients (ZeRO stage 0).

In half precision the trainable weights have fp32 masters, gradients are summed in fp32 and fp16 scales its loss: what
DeepSpeed's half-precision optimizers do, so that both engines agree and one plan predicts both.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn

from ftkit.config.tree import RunConfig
from ftkit.data.batching import MicroBatch
from ftkit.engine.optim import build_optimizer
from ftkit.engine.protocol import Parts, Tensors, explained_standstill
from ftkit.machine.process import ProcessContext
from ftkit.models.build import trainable_parameters
from ftkit.models.objective import Objective
from ftkit.models.partitions import own_tensors
from ftkit.models.streaming.stream import place, value_of
from ftkit.models.streaming.together import Together
from ftkit.records.figures import Kind

BUCKET_ELEMENTS = 2**24
"""Gradients that are summed over ranks at once: 64 MiB in fp32."""


class PlainEngine:
    """One process per device, weights whole on each."""

    name = "plain"
    shares_forwards = False

    def __init__(
        self, config: RunConfig, model: nn.Module, process: ProcessContext, dtype: torch.dtype, objective: Objective
    ) -> None:
        """Move the model to the device and make masters and optimizer; see `build_engine`."""
        self.process, self.device, self.dtype, self.objective = process, process.device, dtype, objective
        self.model = place(model, self.device)
        self._group_size = config.engine.group_size
        self._together = Together(self.model) if self._group_size(2) > 1 else None
        self._max_grad_norm = config.optimizer.max_grad_norm
        self._parameters = trainable_parameters(self.model)
        self._masters = {name: self._master(parameter) for name, parameter in self._parameters.items()}
        self._optimizer = build_optimizer(self._masters, config.optimizer)
        self._scaler = self._new_scaler()

    def begin_step(self, num_micro_batches: int) -> None:
        """Do nothing: gradients are summed over ranks once, when they are applied."""

    def rewind(self) -> int:
        """Return 0: ranks wait for one another in the update alone, so there is nothing to take again."""
        return 0

    def loss(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return the loss summed over the targets of a micro-batch."""
        return self.objective.loss_sum(self.model, micro_batch)

    def groups(self, micro_batches: Sequence[MicroBatch]) -> Iterator[Sequence[MicroBatch]]:
        """Yield so many micro-batches as go through a streamed layer together."""
        size = self._group_size(len(micro_batches))
        # Where a trunk ran before, hidden states come with each micro-batch into a model whose lower layers are gone.
        size = 1 if any(one.hidden is not None for one in micro_batches) else size
        return (micro_batches[first : first + size] for first in range(0, len(micro_batches), size))

    def losses(self, group: Sequence[MicroBatch]) -> Sequence[torch.Tensor]:
        """Return the loss of each micro-batch."""
        if len(group) == 1:
            return [self.loss(group[0])]
        assert self._together is not None
        return self._together.losses(self.loss, group)

    def logits(self, micro_batch: MicroBatch) -> torch.Tensor:
        """Return logits."""
        logits: torch.Tensor = self.model(**micro_batch.inputs()).logits
        return logits

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss to the sums."""
        scaled: Any = self._scaler.scale(loss)
        scaled.backward()

    def discard_gradients(self) -> None:
        """Drop the sums, and what the scaler knows of gradients that it has unscaled."""
        for name, master in self._masters.items():
            master.grad = self._parameters[name].grad = None
        scaler = self._new_scaler()
        scaler.load_state_dict(self._scaler.state_dict())
        self._scaler = scaler

    def apply_gradients(self, learning_rate: float) -> torch.Tensor:
        """Sum gradients over ranks, clip, update, clear."""
        gradients = [self._gradient(master) for master in self._masters.values()]
        with explained_standstill(self.process):
            self._sum_gradients(gradients)
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.get_total_norm(gradients)
        if self._max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self._masters.values(), self._max_grad_norm, norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._publish()
        return norm

    def reset_optimizer(self) -> None:
        """Forget the moments, which the next step makes again, and the loss scale."""
        self._optimizer.state.clear()
        self._scaler = self._new_scaler()

    def sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks."""
        if self.process.world_size > 1:
            distributed.all_reduce(value)
        return value

    def trainable_state(self, *, copy: bool = True) -> Tensors:
        """Return the masters."""
        return {name: master.detach().to("cpu", copy=copy) for name, master in self._masters.items()}

    def load_trainable_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the masters, and the weights from them."""
        with torch.no_grad():
            for name, master in self._masters.items():
                master.copy_(state[name])
        self._publish()

    def optimizer_state(self, *, copy: bool = True) -> Tensors:
        """Return the moments, as `parameter name/moment`."""
        tensors = {}
        for name, master in self._masters.items():
            for key, value in self._optimizer.state[master].items():
                if value is not None:
                    tensors[f"{name}/{key}"] = torch.as_tensor(value).detach().to("cpu", copy=copy)
        if self._scaler.is_enabled():
            tensors["loss_scale/"] = torch.tensor(self._scaler.get_scale())
            tensors["loss_scale/clean_steps"] = torch.tensor(float(self._scaler.state_dict()["_growth_tracker"]))
        return tensors

    def load_optimizer_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Set the moments."""
        for name, master in self._masters.items():
            saved = {key.rpartition("/")[2]: state[key] for key in state if key.rpartition("/")[0] == name}
            self._optimizer.state[master] = {
                key: value.item() if value.dim() == 0 and not _is_fused(self._optimizer) else value.to(master.device)
                for key, value in saved.items()
            }
        if "loss_scale/" in state and self._scaler.is_enabled():
            clean = {"_growth_tracker": int(state.get("loss_scale/clean_steps", 0))}
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": state["loss_scale/"].item()} | clean)

    def trainable_parts(self) -> Parts:
        """Return nothing: each rank has all."""
        return {}

    def optimizer_parts(self) -> Parts:
        """Return nothing: each rank has all."""
        return {}

    def held_tensors(self) -> Iterator[tuple[Kind, torch.Tensor]]:
        """Yield the masters and the moments; a weight that is its own master is a weight."""
        for name, master in self._masters.items():
            if self._parameters[name] is not master:
                yield Kind.OPTIMIZER, master
            for value in self._optimizer.state.get(master, {}).values():
                if isinstance(value, torch.Tensor):
                    yield Kind.OPTIMIZER, value

    def round_trainable(self, dtype: torch.dtype) -> None:
        """Round the masters, and the weights with them."""
        with torch.no_grad():
            for master in self._masters.values():
                master.copy_(master.to(dtype))
        self._publish()

    def weights(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the masters of what trains, and what is frozen as it is, read from where it is streamed from."""
        tensors: dict[str, torch.Tensor] = own_tensors(self.model) | self._masters
        for name in names:
            yield name, value_of(tensors[name]).detach().cpu()

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device.type, init_scale=2.0**12, enabled=self.dtype == torch.float16)

    def _master(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return the fp32 tensor that the optimizer updates: a copy in half precision, the weight itself in fp32."""
        if parameter.dtype == torch.float32:
            return parameter
        master = parameter.detach().float()

        def add_gradient(weight: torch.Tensor) -> None:
            assert weight.grad is not None
            gradient = weight.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            weight.grad = None  # the half-precision gradient lives no longer than this

        parameter.register_post_accumulate_grad_hook(add_gradient)
        return master

    def _gradient(self, master: torch.Tensor) -> torch.Tensor:
        """Return the gradient, zeros where the forward did not reach the weight, so that ranks sum the same."""
        if master.grad is None:
            master.grad = torch.zeros_like(master)
        return master.grad

    def _sum_gradients(self, gradients: list[torch.Tensor]) -> None:
        if self.process.world_size == 1:
            return
        bucket: list[torch.Tensor] = []
        for number, gradient in enumerate(gradients, start=1):
            bucket.append(gradient)
            if number == len(gradients) or sum(one.numel() for one in bucket) >= BUCKET_ELEMENTS:
                _sum_bucket(bucket)
                bucket = []

    def _publish(self) -> None:
        """Copy the masters into the weights that compute."""
        with torch.no_grad():
            for name, master in self._masters.items():
                if self._parameters[name] is not master:
                    self._parameters[name].copy_(master)


def _sum_bucket(bucket: list[torch.Tensor]) -> None:
    """Sum tensors over ranks as one; it is gone before the next bucket is made."""
    flat = torch.cat([one.flatten() for one in bucket])
    distributed.all_reduce(flat)
    for one, part in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
        one.copy_(part.view_as(one))


def _is_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer keeps its step counter as a tensor; bitsandbytes keeps a number."""
    return bool(optimizer.defaults.get("fused"))
