"""A dispatch mode that writes a tape of what runs below it.

The same mode watches tensors without values (a plan) and real ones (a test, a profile), so that the two can be compared
to the byte.

An example: a linear layer of 4 by 3 weights without a bias and a GELU, for a batch of 2 in fp32, whose sum is the loss.
The storages on the tape are numbered as they are born; the parts of a breakdown follow from when they die:

    event                     bytes   live   part         because
    0 born  0.weight             48     48   parameter    `see` was told of it
    1 born  x                    32     80   buffer       and of the input
    -- load
    2 born  mm                   24    104   activation   it outlives the forward: GELU's backward reads it
    3 born  gelu                 24    128   temporary
    4 born  sum                   4    132   activation   the loss, which `train_step` holds
    3 dies                            108                 the sum's backward needs its shape alone
    -- forward
    5 born  ones_like             4    112   temporary    the gradient of the loss
    6 born  gelu_backward        24    136   temporary    what is expanded from 5 is a view of it, and not on the tape
    2 dies                            112
    7 born  mm                   48    160   gradient     it outlives the backward
    6 dies                            136
    5 dies                            132
    -- backward

Each operator is seen once it has run, so an output is born before what only the operator needed dies. Nobody tells of a
death: it is the moment in which the last tensor on a storage goes (`liveness`), by autograd's hand or by Python's.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from ftkit.models.activations.offload import watched
from ftkit.models.kernels.foreign import DispatchMode
from ftkit.models.streaming.stream import window_watched
from ftkit.observe import foreign
from ftkit.observe.attribution import Attribution, layer_named
from ftkit.observe.inplace_sums import ADD, autograd_adds_in_place, references_of_the_last
from ftkit.observe.liveness import Liveness
from ftkit.observe.operators import Work, half_product, op_key, work_of
from ftkit.observe.tape import OpKey, Role, Tape, Untouched
from ftkit.records.figures import Kind
from ftkit.step.observer import Phase

_DEVICE_OF = torch.ops.prim.device.default


class Recorder(DispatchMode):
    """Records on a tape what runs below it; an observer of the step.

    Attributes:
        at: what is at work.
        live: writes the tape's births and deaths.
    """

    def __init__(
        self,
        sizes: Callable[[str, int, torch.Tensor], int] | None = None,
        scratch: Callable[[str, tuple[Any, ...]], tuple[int, ...]] | None = None,
        device_type: str | None = None,
        call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> None:
        """Start an empty tape.

        Args:
            sizes: (operator, number of the output, output) to the bytes of its storage where another device than
                this one would make it larger or smaller; None: as they are.
            scratch: (operator, arguments) to the sizes of what it holds beside its results, `Untouched` where it hardly
                writes there; None: nothing.
            device_type: whose storages are written down, such as `cuda`; None: those of any device.
            call: runs an operator; None: torch does.
        """
        super().__init__()
        self.at = Attribution()
        self.live = Liveness(self.at, device_type)
        self._sizes, self._scratch, self._call = sizes, scratch, call
        references_of_the_last()  # counted before a backward runs

    @property
    def tape(self) -> Tape:
        """The record so far."""
        return self.live.tape

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and write down what it made."""
        # Autograd asks for the device of each gradient, two thirds of all calls; the answer needs no dispatch.
        if func is _DEVICE_OF and (device := foreign.fake_device(args[0])) is not None:
            return device
        if any(map(_wraps, types)):
            return NotImplemented  # the tensors inside it are seen when its own code computes with them
        out = func(*args, **(kwargs or {})) if self._call is None else self._call(func, args, kwargs or {})
        work = work_of(func)
        if work is Work.NONE:
            return out
        if work is Work.SOME:
            self._cost(func, args, out)
        if func is ADD and self.at.phase is Phase.BACKWARD and autograd_adds_in_place(args):
            # The sum lives where its first summand lived.
            if not self.live.hand_over(args[0], out):
                self._see(out, func, 0, args[:1])
            return out
        for number, tensor in enumerate(out if isinstance(out, (tuple, list)) else (out,)):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor, func, number, args)
        if self._scratch is not None and work is Work.SOME and (sizes := self._scratch(func.__name__, args)):
            self._hold(func.__name__, sizes)
        return out

    def see(
        self, tensors: Iterable[tuple[str, torch.Tensor]], role: Role, layers: dict[str, int] | None = None
    ) -> None:
        """Write down tensors that were there before, and say what they are of those that were not.

        Args:
            tensors: names and tensors.
            role: what they are.
            layers: module name of a layer to its number, which its tensors get.
        """
        for name, tensor in tensors:
            if self.live.is_elsewhere(tensor):
                continue
            known = self.live.birth_of(tensor)
            if known is None:
                birth = self.at.birth(tensor.untyped_storage().nbytes(), role=role)
                birth.module, birth.layer = name, layer_named(name, layers or {})
                self.live.born(tensor, birth)
            elif known.role is None:  # made under the recorder, and named only now
                known.role = role
                if layers is not None and not known.module:
                    known.module, known.layer = name, layer_named(name, layers)

    def rename(self, tensors: Iterable[tuple[Kind, torch.Tensor]]) -> None:
        """Say of tensors that are on the tape already what part of a breakdown they are."""
        for kind, tensor in tensors:
            known = self.live.birth_of(tensor)
            if known is not None:
                known.role = Role(kind)

    def chose(self, facts: Hashable) -> None:
        """Write down by which facts a kernel was chosen for the layer at work."""
        known = self.tape.choices.setdefault(self.at.layer, [])
        if facts not in known:
            known.append(facts)

    def ran(self, kernel: str, num_bytes: int) -> None:
        """Write down what a kernel moves that is no operator of torch's, such as one that a compiler has fused."""
        self._add_cost(self.at.layer, (kernel, 0, num_bytes, ""))

    def waits_on_host(self, num_bytes: int) -> None:
        """Write down that a storage waits on the host; once for all micro-batches or groups: they are alike."""
        if self.at.step == 1 and self.at.micro_batch == 0:
            self.tape.on_host.setdefault(self.at.layer, []).append(num_bytes)

    def comes_back(self, storage: torch.Tensor) -> None:
        """Write down what a storage is that comes back from the host."""
        self.see([(self.at.module, storage)], Role.RETURNED)

    def begin_step(self, number: int) -> None:
        """Say which optimizer step is next, from 1."""
        self.at.step, self.at.micro_batch = number, 0

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Follow a phase of a step."""
        self.at.begin(phase)
        yield
        self.mark(phase)
        if phase is Phase.BACKWARD:
            self.at.micro_batch += 1

    def mark(self, phase: Phase) -> None:
        """End a phase."""
        self.tape.marks.append((len(self.tape.events), phase))

    @contextmanager
    def inside(self, model: nn.Module, layers: dict[str, int]) -> Iterator["Recorder"]:
        """Record, and follow a model's modules and layers; then close the tape.

        Args:
            model: whose modules are named on the tape.
            layers: module name of a layer to its number.
        """
        try:
            with self.at.inside(model, layers), watched(model, self), window_watched(model, self), self:
                yield self
        finally:
            self.live.close()

    def window_holds(self, layers: tuple[int, ...]) -> None:
        """Write down which layers the window of a streamed model holds from here on."""
        window = self.tape.window
        if not window or window[-1][1] != layers:
            window.append((len(self.tape.events), layers))

    def _see(self, tensor: torch.Tensor, func: Any, number: int, args: tuple[Any, ...]) -> None:
        if not self.live.is_new(tensor):
            return
        name = func.__name__
        size = tensor.untyped_storage().nbytes() if self._sizes is None else self._sizes(name, number, tensor)
        self.live.born(tensor, self.at.birth_of_output(size, name, number, args, self.live.birth_of))

    def _hold(self, op: str, sizes: tuple[int, ...]) -> None:
        """Write down what an operator holds while it runs; its results are there already."""
        if moved := sum(size for size in sizes if not isinstance(size, Untouched)):
            self._add_cost(self.at.layer, (f"{op} scratch", 0, 2 * moved, ""))  # written once and read once
        self.live.pass_by(*(self.at.birth(size, op=op) for size in sizes))

    def _cost(self, func: Any, args: tuple[Any, ...], out: Any) -> None:
        if self.at.is_positional:
            key = op_key(func.__name__, args, out)
            self._add_cost(self.at.layer, key)
            if (product := half_product(func.__name__, args)) is not None:
                self.tape.products.setdefault(self.at.phase, set()).add(product)
            if self.at.is_recomputing:
                self.tape.recomputed_flops[self.at.step, self.at.layer] += key[1]
            return
        # Lists of parameters are told one by one, each to the layer that its parameter belongs to.
        lists = [argument for argument in (*args, out) if isinstance(argument, (list, tuple)) and argument]
        if not lists or not isinstance(lists[0][0], torch.Tensor):
            self._add_cost(self.at.inherited(0, args, self.live.birth_of), op_key(func.__name__, args, out))
            return
        for number, tensor in enumerate(lists[0]):
            parts = tuple(one[number] for one in lists if number < len(one))
            birth = self.live.birth_of(tensor)
            layer = None if birth is None else birth.layer
            self._add_cost(layer, op_key(f"_fused{func.__name__}", parts, None))

    def _add_cost(self, layer: int | None, key: OpKey) -> None:
        self.tape.costs.setdefault((self.at.phase, self.at.step, layer), Counter())[key] += 1


@cache
def _wraps(kind: type) -> bool:
    """Return whether tensors of a type hold other tensors, such as torchao's 4-bit ones."""
    return foreign.wraps_tensors(kind)
