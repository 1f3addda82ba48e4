"""What DeepSpeed's optimizers keep of a step that has begun, forgotten where they have no method for it.

They drop gradients by themselves after an update and where fp16 overflows; a step that is undone before its update is
not foreseen. Named as in DeepSpeed 0.19, runtime/zero/stage_1_and_2.py and stage3.py.
"""

from typing import Any


def forget_step(optimizer: Any) -> None:
    """Drop the gradients of a step that is undone, so that the next one starts as after an update.

    Args:
        optimizer: DeepSpeed's, of any stage.
    """
    optimizer.zero_grad(set_to_none=True)  # of the weights; in stage 3 the next backward overwrites the sums
    optimizer.clear_backward_seen_flag()
