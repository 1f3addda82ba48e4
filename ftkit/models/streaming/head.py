"""The head of a streamed language model: its weight comes when all layers have run, in the place of those layers.

The loss is made in chunks, and the gradient of the hidden states with it, so a micro-batch needs the head in one call
of its module and never again. Logits that are whole would need it in the backward too, after it has left; so a head
whose loss is not made in chunks is refused. A head that is the table of tokens too comes as any other does, and the
rows of the table are looked up on the host.
"""

from typing import Any, cast

from torch import nn

from ftkit.errors import ModelError
from ftkit.models.kernels.chunked_loss import chunkable_head
from ftkit.models.left_out import left_out
from ftkit.models.streaming.table import table_to_stream

_CURE = "leave engine.stream_head out"


def head_to_stream(model: nn.Module) -> str:
    """Return the name of the weight of a model's head.

    Args:
        model: a transformers model.

    Raises:
        ModelError: the model is not a language model with a linear head behind its layers, which nothing but its table
            of tokens shares.
    """
    kind, head = type(model).__name__, chunkable_head(model)
    if type(head) is not nn.Linear:
        raise ModelError(f"the loss of {kind} is not made in chunks, so its head is needed in the backward; {_CURE}")
    names = [name for name, one in model.named_parameters(remove_duplicate=False) if one is head.weight]
    if len(names) > 1 and table_to_stream(model, is_head=True) != names[0]:
        raise ModelError(f"the head of {kind} is not its own ({' and '.join(names)}), and cannot leave; {_CURE}")
    return names[0]


def left_out_head(model: nn.Module) -> nn.Module | None:
    """Return the head of a model whose weight was left out; None where it is there.

    Args:
        model: a transformers model, or a PEFT model around it.
    """
    head = cast(Any, model).get_output_embeddings()
    return head if type(head) is nn.Linear and left_out(head.weight) is not None else None
