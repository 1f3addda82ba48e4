"""Keep a rank in step with the others after its memory ran out in the middle of a pass.

Under ZeRO the ranks exchange gradients in each backward, and in stage 3 weights in each forward too. A rank that stops
in the middle of a pass leaves the others waiting inside such a collective, where they can hear nothing. So it takes the
pass again, with one short sequence, and leaves out the collectives that it has taken already. An example of stage 3:

    the others                   gather 1   gather 2   gather 3   reduce 1   agree: a rank had no memory
    this rank: no memory         gather 1   gather 2
    this rank, the pass again    (left out) (left out) gather 3   reduce 1   agree: a rank had no memory

This works because the collectives of a pass depend on the model alone and not on its sequences. What is computed is
wrong, since the weights of gathers that are left out hold no values; nobody reads it, for the step is undone on all.
Names as in DeepSpeed 0.19, comm/comm.py and runtime/zero/partitioned_param_coordinator.py.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ftkit.engine import foreign
from ftkit.engine.undone_step import clear_pass
from ftkit.machine.memory import is_out_of_memory

COLLECTIVES = (
    "all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_reduce", "all_to_all_single", "broadcast",
    "reduce", "reduce_scatter", "reduce_scatter_tensor",
)  # fmt: skip
"""Methods of DeepSpeed's communication backend."""
COORDINATOR = "_PartitionedParameterCoordinator__"
"""The prefix that Python gives to the private attributes of the class that gathers in stage 3."""


class Pace:
    """Counts the collectives of this rank's pass, one forward and perhaps its backward, and takes a pass again."""

    def __init__(self, model: nn.Module, optimizer: Any, backend: Any, *, is_partitioned: bool) -> None:
        """Count from here on.

        Args:
            model: that DeepSpeed has prepared.
            optimizer: DeepSpeed's, of any stage.
            backend: through which DeepSpeed communicates; one for all engines of a process, and counted by the last.
            is_partitioned: whether the stage is 3.
        """
        self._optimizer = optimizer
        self._weights: list[Any] = (
            [one for one in model.parameters() if foreign.is_partitioned(one)] if is_partitioned else []
        )
        self._trainable = [one for one in model.parameters() if one.requires_grad]
        self._start: _Start | None = None
        self._num_taken = self._num_left_out = 0
        self._is_rewound = False
        if is_partitioned:
            coordinator = self._coordinator()
            self._reset_step = coordinator.reset_step
            coordinator.reset_step = self._start_pass
        for name in COLLECTIVES:
            setattr(backend, name, self._counted(getattr(type(backend), name).__get__(backend)))

    def expect_pass(self) -> None:
        """Say that no pass has begun since the last one ended."""
        assert not self._num_left_out  # a pass that was taken again came past where it had stopped
        self._start, self._num_taken = None, 0

    def rewind(self) -> None:
        """Return to the start of the pass that stopped, without a word to the other ranks."""
        clear_pass(self._optimizer, self._trainable, is_partitioned=bool(self._weights))
        if self._weights and self._start is not None:
            self._release(self._start.absent)
            self._start.trace.restore(self._coordinator())
            self._is_rewound = True
        self._num_left_out, self._num_taken = self._num_taken, 0

    def _start_pass(self) -> None:
        """Stand for what DeepSpeed does as a forward starts: it asks the others, which a pass taken again must not."""
        if not self._is_rewound:
            self._reset_step()
        self._is_rewound, self._num_taken = False, 0
        absent = [one for one in self._weights if one.ds_persist and not _is_here(one)]
        self._start = _Start(_Trace.of(self._coordinator()), absent)

    def _counted(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def take(*arguments: Any, **named: Any) -> Any:
            if self._num_left_out:
                self._num_left_out -= 1
                return _LEFT_OUT
            work = collective(*arguments, **named)
            self._num_taken += 1
            return work

        return take

    def _release(self, absent: list[Any]) -> None:
        """Give back the weights that the pass has gathered."""
        for weight in self._weights:
            weight.ds_active_sub_modules.clear()
        foreign.finish_gathers(self._optimizer)
        for weight in self._weights:
            if _is_here(weight) and (not weight.ds_persist or any(weight is one for one in absent)):
                weight.partition()

    def _coordinator(self) -> Any:
        return self._optimizer.parameter_offload.get_param_coordinator()


class HeldUpdate:
    """Holds back that an update ran out of memory until the collectives around it are over."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Stand in front of an optimizer that DeepSpeed is about to get.

        Args:
            optimizer: updates this rank's masters, and asks no other rank.
        """
        self._reason: str | None = None
        self._step = optimizer.step
        vars(optimizer)["step"] = self._take

    def check(self) -> None:
        """Say what was held back.

        Raises:
            OutOfMemoryError: the last update ran out of memory, and perhaps changed some weights.
        """
        reason, self._reason = self._reason, None
        if reason is not None:
            raise torch.OutOfMemoryError(reason)

    def _take(self, *arguments: Any, **named: Any) -> Any:
        try:
            return self._step(*arguments, **named)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._reason = str(error)


@dataclass(frozen=True)
class _Start:
    """What the start of a pass in stage 3 is told by: what the coordinator knew, and which small weights were away."""

    trace: "_Trace"
    absent: list[Any]


@dataclass(frozen=True)
class _Trace:
    """The order of modules and weights that the coordinator fetches ahead by, or is about to record."""

    mode: Any
    modules: tuple[Any, ...]
    weights: tuple[Any, ...]

    @classmethod
    def of(cls, coordinator: Any) -> "_Trace":
        modules, weights = (getattr(coordinator, f"{COORDINATOR}{name}_order") for name in ("submodule", "param"))
        return cls(getattr(coordinator, f"{COORDINATOR}trace_mode"), tuple(modules), tuple(weights))

    def restore(self, coordinator: Any) -> None:
        """Do what `reset_step` does as a forward starts, with what was known at the start of this one."""
        coordinator._clear_trace_structures()
        is_complete = self.mode.name == "COMPLETE"
        values = {"trace_mode": self.mode, "step_id": 0, "n_available_params": 0, "param_queue": deque(self.weights)}
        if is_complete:
            values |= {"submodule_order": self.modules, "param_order": self.weights}
        for name, value in values.items():
            setattr(coordinator, f"{COORDINATOR}{name}", value)


class _LeftOut:
    """Stands for a collective that is left out, and is over at once."""

    def wait(self, *_: object, **__: object) -> None:
        """Return at once."""


_LEFT_OUT = _LeftOut()


def _is_here(weight: Any) -> bool:
    return bool(weight.ds_status.name == "AVAILABLE")
