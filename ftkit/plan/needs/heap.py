"""What lies free in the heap of a process on a CPU, beside the tensors that live.

The heap keeps all that its blocks ever took at once; larger blocks come from the system one by one and go back to it
(`ftkit.machine.heap`). So the worst moment of the process may be the worst of neither. ZeRO-3 gathers the table of
embeddings in a forward when the layers that were gathered for the last backward, into the heap, have gone again:

    MB                            in the heap    larger    live    the process
    the table is gathered                  20        47      67             67
    the layers are gathered                70         0      70             70
    the table is gathered again            20        47      67   70 + 47 = 117
"""

from ftkit.machine.heap import LARGEST_IN_HEAP, is_whole
from ftkit.observe.tape import Tape
from ftkit.step.observer import Phase

HEAP_SHARE = 0.22
"""What lies free between the blocks of the heap, of the bytes that come and go there in a step, beside those that stay
from one step to the next (LoRA on MiniLM in fp32, with and without recomputing); where the heap was not set
(`ftkit.machine.heap`), as much as comes and goes."""
HEAP_BYTES = 300 * 10**6
"""At most about this much lies free between the blocks. What their worst moment had beyond the peak comes on top,
without a bound."""


def free_in_heap(tape: Tape, active_bytes: int) -> int:
    """Return what lies free in the C library's heap at the worst moment of the process.

    Args:
        tape: of whole steps.
        active_bytes: that live at the peak.
    """
    if not is_whole():
        return min(HEAP_BYTES, active_bytes - dict(tape.at_marks()[:1]).get(Phase.LOAD, 0))
    end_of_load = tape.marks[0][0] if tape.marks else 0
    loaded, larger = _live(tape, 0, end_of_load, (0, 0))[0]  # what loading left free has been given back
    (stays, _), (most, most_larger) = _live(tape, end_of_load, None, (loaded, larger))
    between = min(HEAP_BYTES, int(HEAP_SHARE * (most - stays)))
    return max(0, most + most_larger - active_bytes) + between


def _live(tape: Tape, begin: int, end: int | None, before: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the bytes that live at the end of some events, and the most that ever did: in the heap, and beside it.

    Args:
        tape: of whole steps.
        begin: the first event.
        end: the first that is left out; None: none is.
        before: the bytes that lived before.
    """
    live, most = list(before), list(before)
    for storage, is_birth, _ in tape.walk(begin, end):
        size = tape.births[storage].size
        place = int(size > LARGEST_IN_HEAP)
        live[place] += size if is_birth else -size
        most[place] = max(most[place], live[place])
    return (live[0], live[1]), (most[0], most[1])
