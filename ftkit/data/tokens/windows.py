"""Texts that are longer than `data.max_length`, in windows: what may be read so, and how long a window is.

A text is cut into the fewest windows that hold it, side by side and nearly equal: each token is in one of them, and no
window has a few tokens alone. Each has the special tokens that a text of its own would have. In training the loss of a
text is the mean over its windows, and its logits are theirs averaged wherever it is answered.
"""

import math

from ftkit.config.tree import DataConfig
from ftkit.errors import DataError


def check_windows(config: DataConfig, *, is_labelled: bool, has_pairs: bool) -> None:
    """Refuse windows where they have no meaning.

    Args:
        config: of the data.
        is_labelled: the texts have labels; else a language model reads them.
        has_pairs: an example is two texts.

    Raises:
        DataError: naming what to do instead.
    """
    if config.long_texts != "windows":
        return
    if not is_labelled:
        raise DataError(
            "data.long_texts=windows is for texts with labels; running text is read in blocks of --max-length, and "
            "an answer belongs to all of its prompt: leave it out, or give a greater --max-length"
        )
    if has_pairs:
        raise DataError(
            "data.long_texts=windows is for single texts: the windows of two texts would have to meet each other; "
            "leave it out, and the longer text of a pair is cut first, or give a greater --max-length"
        )


def window_length(num_tokens: int, room: int) -> int:
    """Return the tokens of a text's longest window.

    Args:
        num_tokens: of the text, without special tokens.
        room: for tokens of the text in a window.
    """
    return math.ceil(num_tokens / math.ceil(num_tokens / room))
