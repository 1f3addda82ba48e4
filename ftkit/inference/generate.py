"""Let a language model write: an answer to a prompt, or the next turn of a chat."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from ftkit.data.chat.forms import as_parts
from ftkit.data.chat.template import wants_parts
from ftkit.errors import ConfigError
from ftkit.inference.opened import Opened

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


def write(opened: Opened, messages: Sequence[Message], sampling: Sampling, streamer: Any = None) -> str:
    """Write what comes next.

    Args:
        opened: a language model.
        messages: of a chat, where the tokenizer has a chat template; else their contents are one text.
        sampling: how.
        streamer: transformers', told of the tokens as they come; None: nobody is.

    Returns:
        What was written, without the prompt and without special tokens.

    Raises:
        ConfigError: the model classifies.
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
    torch.manual_seed(sampling.seed)
    with torch.inference_mode():
        tokens = cast(Any, opened.reader.model).generate(
            **inputs.to(opened.reader.device),
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,
            streamer=streamer,
            **chosen,
        )[0]
    return str(tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True))
