"""Let a language model write: an answer to a prompt, or the next turn of a chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from ftkit.data.chat.forms import as_parts
from ftkit.data.chat.template import wants_parts
from ftkit.errors import ConfigError
from ftkit.inference.opened import Opened
from ftkit.models.build import num_positions

Message = dict[str, Any]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: tokens after which an answer is cut.
        temperature: 0 takes the likeliest token.
        top_p: the share of probability that is drawn from.
        seed: of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Written:
    """What a language model wrote.

    Attributes:
        text: without the prompt and without special tokens.
        cut_at: the tokens after which it was cut; None where the model ended it.
    """

    text: str
    cut_at: int | None


def write(opened: Opened, messages: Sequence[Message], sampling: Sampling, streamer: Any = None) -> Written:
    """Write what comes next.

    Args:
        opened: a language model.
        messages: of a chat, where the tokenizer has a chat template; else their contents are one text.
        sampling: how.
        streamer: transformers', told of the tokens as they come; None: nobody is.

    Returns:
        What was written, and whether it was cut: at `max_new_tokens`, or where the model's positions end.

    Raises:
        ConfigError: the model classifies, or the prompt leaves none of its positions.
    """
    if opened.labels is not None:
        raise ConfigError(f"{opened.name} answers with labels; ask it with ftkit predict")
    tokenizer = opened.tokenizer
    if tokenizer.chat_template:
        written = [as_parts(message) for message in messages] if wants_parts(tokenizer) else list(messages)
        prompt = tokenizer.apply_chat_template(written, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(prompt, add_special_tokens=False, return_token_type_ids=False, return_tensors="pt")
    else:
        text = "\n".join(message["content"] for message in messages)
        inputs = tokenizer(text, return_token_type_ids=False, return_tensors="pt")
    draws = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    likeliest = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    chosen: dict[str, Any] = draws if sampling.temperature > 0 else likeliest
    model, num_asked = cast(Any, opened.reader.model), inputs["input_ids"].shape[1]
    most = _room(model, num_asked, sampling.max_new_tokens)
    torch.manual_seed(sampling.seed)
    with torch.inference_mode():
        tokens = model.generate(
            **inputs.to(opened.reader.device),
            max_new_tokens=most,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            streamer=streamer,
            **chosen,
        )[0]
    answer = tokens[num_asked:]
    end = model.generation_config.eos_token_id  # a number, several, or None
    ends = torch.tensor([] if end is None else end, dtype=torch.int64, device=answer.device)
    is_cut = len(answer) == most and not torch.isin(answer[-1], ends)
    return Written(str(tokenizer.decode(answer, skip_special_tokens=True)), most if is_cut else None)


def _room(model: Any, num_asked: int, num_wanted: int) -> int:
    """Return how many tokens may be written: as many as are wanted, or as the model has positions for."""
    positions = num_positions(model)
    if positions is not None and num_asked >= positions:
        raise ConfigError(
            f"the prompt has {num_asked} tokens, and the model has {positions} positions: none is left to answer; "
            "give it a shorter one"
        )
    return num_wanted if positions is None else min(num_wanted, positions - num_asked)
