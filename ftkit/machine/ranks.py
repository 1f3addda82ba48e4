"""What the ranks of a job do together, so that all go on or none does."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from ftkit.errors import FtkitError
from ftkit.machine.process import ProcessContext

Done = TypeVar("Done")


def together(process: ProcessContext, act: Callable[[], Done]) -> Done:
    """Do something on every rank, such that all go on or none does.

    Args:
        process: the place of this process; every process of the job calls this.
        act: called on every rank.

    Returns:
        What it returned here.

    Raises:
        FtkitError: what `act` raised on the first rank on which it failed, on every rank.
    """
    done: Done | None = None
    mistake: FtkitError | None = None
    try:
        done = act()
    except FtkitError as error:
        mistake = error
    for one in of_all_ranks(process, mistake):
        if one is not None:
            raise one
    return cast("Done", done)


def of_all_ranks(process: ProcessContext, value: Done) -> list[Done]:
    """Return what each rank gives, in their order, on every rank; called by all of them, which wait for the last.

    Args:
        process: the place of this process.
        value: of this rank; it can be pickled.
    """
    if process.world_size == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * process.world_size
    distributed.all_gather_object(values, value)
    return values


def sum_of_ranks(process: ProcessContext, value: int) -> int:
    """Return the sum of a number over all ranks, on every rank; called by all of them.

    Args:
        process: the place of this process.
        value: of this rank.
    """
    return _reduced(process, value, "SUM")


def largest_of_ranks(process: ProcessContext, value: int) -> int:
    """Return the largest of a number over all ranks, on every rank; called by all of them.

    Args:
        process: the place of this process.
        value: of this rank.
    """
    return _reduced(process, value, "MAX")


def _reduced(process: ProcessContext, value: int, operation: str) -> int:
    """Reduce a number over all ranks; reading it waits for the device, so it belongs where ranks wait anyway."""
    if process.world_size == 1:
        return value
    import torch
    from torch import distributed

    reduced = torch.tensor(value, device=process.device)
    distributed.all_reduce(reduced, getattr(distributed.ReduceOp, operation))
    return int(reduced)
