"""Report what tokenizing a split cost: targets that were cut off, tokens across a border, special tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftkit.data.findings import Finding, note, warning
from ftkit.data.tokens.encode import Encoded, Losses
from ftkit.data.tokens.tokenizer import TextTokenizer
from ftkit.units import counted

_MUCH = 0.05
"""The share of texts that may be cut before it is a warning."""
_FEW = 0.01
"""The share of tokens that may be unknown before it is a warning."""
_BLOCK_TOKENS = 2**20  # compared at once: the tokens may lie on a disk, and what is made of them would not


def findings_of_losses(encoded: Mapping[str, Encoded], max_length: int, tokenizer: TextTokenizer) -> list[Finding]:
    """Say what tokenizing cost.

    Args:
        encoded: split to sequences.
        max_length: tokens after which they were cut.
        tokenizer: that made the tokens.

    Returns:
        Findings, by split.
    """
    longest = tokenizer.original.model_max_length
    found = [one for split, result in encoded.items() for one in _of_split(split, result, max_length, longest)]
    if (unknown := tokenizer.unknown()) is not None:
        found += [finding for split, result in encoded.items() for finding in _unknown(split, result, unknown)]
    if tokenizer.backend is None:
        found.append(note("the tokenizer has no fast form (tokenizer.json), so texts are tokenized one by one"))
    num_spelled = sum(result.losses.num_spelled for result in encoded.values())
    if num_spelled:
        found.append(spelled(num_spelled, are_characters=tokenizer.special.are_characters))
    return [*found, *_of_borders([result.losses for result in encoded.values()])]


def spelled(count: int, *, are_characters: bool) -> Finding:
    """Say that texts spell out special tokens."""
    texts = f"{counted(count, 'text spells', 'texts spell')} out special tokens of the tokenizer"
    if are_characters:
        return note(f"{texts}, which are read as characters", "data.special_tokens_in_text=tokens reads tokens")
    return warning(f"{texts}, which are read as those tokens, as data.special_tokens_in_text=tokens wants")


def _having(count: int) -> str:
    return counted(count, "sequence has", "sequences have")


def length_that_keeps(whole_lengths: NDArray[np.integer[Any]], share: float) -> int:
    """Return the tokens at which a share of texts is not cut."""
    return int(np.quantile(whole_lengths, share, method="inverted_cdf"))


def _of_split(split: str, result: Encoded, max_length: int, longest: int) -> list[Finding]:
    found, losses = [], result.losses
    cure = ""
    if len(result.whole_lengths) and result.whole_lengths.max() > max_length:
        cure = _length_cure(result.whole_lengths, max_length, longest)
    if losses.num_dropped:
        found.append(warning(f"{split}: {_having(losses.num_dropped)} no target left at max_length; left out", cure))
    if losses.num_shortened:
        own = "sequence loses a part of its targets", "sequences lose a part of their targets"
        lost = f"{split}: {counted(losses.num_shortened, *own)} at max_length"
        found.append(warning(f"{lost} ({counted(losses.num_lost_targets, 'target')} with those left out)", cure))
    if losses.num_unanswered:
        found.append(note(f"{split}: left out, since {_having(losses.num_unanswered)} no target at all"))
    share = losses.num_truncated / max(1, result.split.num_texts)
    if losses.num_in_windows:
        found.append(
            note(
                f"{split}: {counted(losses.num_in_windows, 'text is', 'texts are')} longer than max_length and read in "
                f"windows: {counted(len(result.split), 'sequence')} for "
                f"{counted(result.split.num_texts, 'text')}; micro-batches count sequences"
            )
        )
    if result.is_single and cure:
        cure += "; --set data.long_texts=windows reads all of each text, in windows"
    if share > _MUCH and not (losses.num_dropped or losses.num_shortened):
        found.append(warning(f"{split}: {share:.1%} of the texts are cut at max_length", cure))
    return found


def _length_cure(lengths: NDArray[np.integer[Any]], max_length: int, longest: int) -> str:
    """Say which lengths would cut fewer texts, no longer than what the model is made for."""
    most, all_of_them = (length_that_keeps(lengths, share) for share in (0.95, 1.0))
    if all_of_them <= longest:
        return f"--max-length {most} keeps 95 % of the texts whole, {all_of_them} all of them"
    if most <= longest:
        return f"--max-length {most} keeps 95 % of the texts whole; the model is made for {longest} tokens at most"
    kept = f"{(lengths <= longest).mean():.0%} of the texts whole"
    if max_length >= longest:
        return (
            f"the model is made for {longest} tokens, which keep {kept}: take one for longer texts, or split the texts"
        )
    return f"--max-length {longest}, the most of this model, keeps {kept}; one for longer texts keeps more"


def _of_borders(losses: Sequence[Losses]) -> list[Finding]:
    """Say what became of tokens at the beginning and at the end of texts and answers, in all splits."""
    across, unpredicted, alone, unclosed = (
        sum(getattr(one, name) for one in losses) for name in ("num_across", "num_unpredicted", "num_alone", "num_open")
    )
    border = "across the border before an answer"
    lying = f"token lies {border}; it carries loss", f"tokens lie {border}; they carry loss"
    told = {
        counted(across, *lying): across,
        f"the first token of {counted(unpredicted, 'sequence')} carries no loss: nothing stands before it": unpredicted,
        f"the last token of {counted(alone, 'split')} would be a block of its own, and is left out": alone,
    }
    found = [note(text) for text, count in told.items() if count]
    if unclosed:
        text = (
            f"{counted(unclosed, 'text ends', 'texts end')} without a token that says so, since the tokenizer has none"
        )
        found.append(warning(text, "set eos_token in the tokenizer's files, or a model does not learn where to stop"))
    return found


def _unknown(split: str, result: Encoded, token: int) -> list[Finding]:
    tokens = result.split.tokens
    blocks = (tokens[start : start + _BLOCK_TOKENS] for start in range(0, len(tokens), _BLOCK_TOKENS))
    share = sum(np.count_nonzero(block == token) for block in blocks) / len(tokens)
    if share < _FEW:
        return []
    cure = "choose a model that was trained on such texts"
    return [warning(f"{split}: {share:.1%} of the tokens stand for what the tokenizer does not know", cure)]
