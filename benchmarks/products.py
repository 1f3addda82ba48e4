"""The time of a step beside that of its bare matrix products, and where the rest of the step goes; on one thread.

    python -m benchmarks.products minilm [--rounds 3] [--precision bf16]
    python -m benchmarks.products llama

The steps are those of `benchmarks/cuts.py`, in the cut that ftkit takes by default, 512 tokens in fp32 and 2,048 in
bf16: LoRA (r = 8, dropout 0.05) over random weights. `minilm` classifies 128 sequences of 32 tokens, `llama` models
language with SmolLM2-135M's shape at its whole depth, 4 x 256 tokens. The products of a step are those that torch's
dispatcher saw; each is run again in the same order on operands of its own shape and strides, and nothing else is. A
product of rank 8 is one with a side that is no longer. Fused attention is not counted as a product. What bounds the
rest of a step is the bytes that its other operators read and write: they are set beside a copy of as many, among
tensors of a layer's size. The shares are those of torch's profiler, whose own cost is in them.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_map

from benchmarks.beside import spread
from benchmarks.cuts import make_engine
from benchmarks.job import RANK
from ftkit.data.batching import MicroBatch, Shape
from ftkit.engine.protocol import Engine
from ftkit.machine.heap import keep_heap_whole
from ftkit.machine.process import ProcessContext, joined
from ftkit.models.kernels.foreign import DispatchMode
from ftkit.observe.operators import Work, op_key, work_of
from ftkit.observe.recorded import make_batches
from ftkit.step.step import train_step

SHAPES = {
    ("minilm", "fp32"): Shape(16, 32, num_micro_batches=8, is_padded=True),
    ("minilm", "bf16"): Shape(64, 32, num_micro_batches=2, is_padded=True),
    ("llama", "fp32"): Shape(2, 256, num_micro_batches=2),
    ("llama", "bf16"): Shape(4, 256, num_micro_batches=1),
}
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"}
NUM_PROFILED, NUM_LINES = 3, 14
NUM_COPIED, COPIED_BYTES = 32, 3 * 2**20
"""Tensors of the hidden states of an MLP, which together fit no cache of one core."""
Product = Callable[[], Any]


class Products(DispatchMode):
    """Collects the matrix products that run while it is entered, each ready to run again.

    Attributes:
        found: the products in their order.
        moved_bytes: that all other operators read and write.
    """

    def __init__(self) -> None:
        """Start with none."""
        super().__init__()
        self.found: list[Product] = []
        self.moved_bytes = 0
        self._operands: dict[Any, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and note it where it is a product."""
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in PRODUCTS:
            again, settings = tree_map(self._operand, (args, kwargs or {}))
            self.found.append(partial(func, *again, **settings))
        elif work_of(func) is Work.SOME:
            self.moved_bytes += op_key(func.__name__, args, out)[2]
        return out

    def _operand(self, value: Any) -> Any:
        """Return a tensor that is laid out as another; those of one layout share it."""
        if not isinstance(value, torch.Tensor):
            return value
        key = (value.shape, value.stride(), value.dtype)
        if key not in self._operands:
            # written, since pages that nobody wrote are all one page of zeros, which every cache holds
            self._operands[key] = torch.empty_strided(*key[:2], dtype=key[2]).fill_(1e-3)
        return self._operands[key]


def seconds(action: Callable[[], Any]) -> float:
    """Return the seconds of the processor that something takes."""
    began = time.process_time()
    action()
    return time.process_time() - began


def run_all(products: Sequence[Product]) -> None:
    """Run products, one behind the other."""
    with torch.no_grad():
        for product in products:
            product()


def copied_bytes_per_second() -> float:
    """Return the bytes that copies read and write in a second of the processor."""
    tensors = [torch.ones(COPIED_BYTES, dtype=torch.uint8) for _ in range(NUM_COPIED)]

    def copy_all() -> None:
        for one, other in pairwise(tensors):
            other.copy_(one)

    return 2 * COPIED_BYTES * (NUM_COPIED - 1) / min(seconds(copy_all) for _ in range(NUM_COPIED))


def kind(operator: str, shapes: Sequence[Sequence[int]]) -> str:
    """Return the line of the table that an operator belongs to.

    Args:
        operator: as the profiler names it, such as `aten::mm`.
        shapes: of its inputs.
    """
    name = operator.removeprefix("aten::")
    if name not in PRODUCTS:
        return name
    if "bmm" in name:
        return "products of attention"
    narrow = any(side <= RANK for shape in shapes for side in shape if len(shape) == 2)
    return "products of rank 8" if narrow else "products of the layers"


def shares(step: Callable[[], Any]) -> Mapping[str, float]:
    """Return the share of each kind of operator in the time of a step, by torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        for _ in range(NUM_PROFILED):
            step()
    spent: Counter[str] = Counter()
    for event in profile.key_averages(group_by_input_shape=True):
        spent[kind(event.key, event.input_shapes)] += event.self_cpu_time_total
    return {name: spent[name] / spent.total() for name, _ in spent.most_common()}


def take_step(engine: Engine, batches: Sequence[MicroBatch]) -> None:
    """Take one optimizer step."""
    train_step(engine, batches, 100.0, 1e-4)


def print_floor(moved_bytes: int, bare_seconds: float) -> None:
    """Print what a step would take if each operator but the products took as long as a copy of its bytes.

    Args:
        moved_bytes: by these operators.
        bare_seconds: of the products.
    """
    rate = copied_bytes_per_second()
    copied = moved_bytes / rate
    print(f"the other operators move {moved_bytes / 1e9:.1f} GB: {copied:.2f} s at the {rate / 1e9:.0f} GB/s of a copy")
    print(f"with its products {bare_seconds + copied:.2f} s, {1 + copied / bare_seconds:.2f} times these alone\n")


def compare(name: str, engine: Engine, shape: Shape, num_rounds: int) -> None:
    """Time step and products in turns, print both and their ratio, then the shares.

    Args:
        name: of what is compared.
        engine: takes the steps.
        shape: of the micro-batches of a step.
        num_rounds: turns of both.
    """
    step = partial(take_step, engine, make_batches(engine.objective, shape))
    with Products() as products:
        step()
    run_all(products.found)
    times = [(seconds(step), seconds(partial(run_all, products.found))) for _ in range(num_rounds)]
    whole, bare = ([pair[number] for pair in times] for number in (0, 1))
    print(f"{name}: a step takes {spread(whole)} s, its {len(products.found)} bare products {spread(bare)} s")
    print(f"ratio within a round: {spread([one / other for one, other in times])}")
    print_floor(products.moved_bytes, median(bare))
    print("| operator | share of the step |\n|---|---:|")
    for operator, share in list(shares(step).items())[:NUM_LINES]:
        print(f"| {operator} | {share:.1%} |")


def main() -> None:
    """Read the command line, make the engine and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(dict.fromkeys(model for model, _ in SHAPES)))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    keep_heap_whole()  # as `ftkit train` does
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, joined(ProcessContext()):
        engine = make_engine(asked.model, "lora", asked.precision, 0, Path(folder))
        compare(f"{asked.model}, {asked.precision}", engine, SHAPES[asked.model, asked.precision], asked.rounds)


if __name__ == "__main__":
    main()
