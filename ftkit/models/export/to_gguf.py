"""Write a model of safetensors as one GGUF file, for llama.cpp and all that reads its files; a tensor at a time.

Names of tensors come from gguf's own table. What this writes is what ftkit has tried: models of the Llama and Qwen
families with plain rotary positions and a byte-level BPE tokenizer. For all else llama.cpp brings a converter, which
takes the folder of a merged model.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ftkit.config.tree import RunConfig
from ftkit.errors import DependencyError, ModelError
from ftkit.models.build import build_bare_model
from ftkit.models.sources.source import Source, load_tokenizer, own_config
from ftkit.models.sources.stored import Stored, open_stored

_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""transformers' name of an architecture to llama.cpp's."""
_TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""What matrices are written in, to gguf's name; vectors are always written in F32, as llama.cpp computes with them."""
_SPLITS = {
    r"\p{N}{1,3}": "llama-bpe",
    r"\p{N}": "qwen2",
    '"individual_digits": true': "smollm",
}
"""How a tokenizer cuts texts before it merges, to llama.cpp's name of that (llama.cpp, src/llama-vocab.cpp)."""
_CONVERTER = "run llama.cpp's convert_hf_to_gguf.py on the folder that --to merged makes"


@dataclass(frozen=True)
class _Vocabulary:
    """A byte-level BPE tokenizer, as GGUF holds it."""

    tokens: list[str]
    types: list[int]
    merges: list[str]
    split: str


def write_gguf(config: RunConfig, source: Source, file: Path, precision: str, name: str) -> None:
    """Write one GGUF file.

    Args:
        config: the run, whose task is causal-lm.
        source: the folder of a whole model, with its tokenizer.
        file: where to.
        precision: of matrices: `fp32`, `fp16`, `bf16`, or `q8_0`, 8 bits in blocks of 32.
        name: of the model.

    Raises:
        ModelError: the model or its tokenizer is of a kind that this does not write.
        DependencyError: the package gguf is missing.
    """
    library = _library()
    architecture, tokenizer = own_config(source), load_tokenizer(source)
    kind = _check(architecture)
    vocabulary = _vocabulary(tokenizer, architecture.vocab_size)
    writer = library.GGUFWriter(file, kind)
    file_type = "ALL_F32" if precision == "fp32" else f"MOSTLY_{_TYPES[precision]}"
    _write_settings(writer, architecture, name, library.LlamaFileType[file_type])
    _write_tokenizer(writer, tokenizer, vocabulary)
    model = build_bare_model(config, architecture, torch.float32)
    with open_stored(source, model) as stored:
        _write_tensors(writer, model, stored, kind, precision)


def _check(architecture: Any) -> str:
    """Return llama.cpp's name of an architecture that this writes.

    Raises:
        ModelError: it is another one, or has something that this does not write.
    """
    kind = _ARCHITECTURES.get(architecture.model_type)
    if kind is None:
        raise ModelError(
            f"ftkit writes GGUF of {', '.join(_ARCHITECTURES)}, and this is {architecture.model_type}; {_CONVERTER}"
        )
    rope = getattr(architecture, "rope_parameters", None) or {}
    strange = {
        f"rotary positions of type {rope.get('rope_type')}": rope.get("rope_type", "default") != "default",
        "biases in attention": kind == "llama" and getattr(architecture, "attention_bias", False),
        "a sliding window": getattr(architecture, "use_sliding_window", kind == "llama")
        and getattr(architecture, "sliding_window", None) is not None,
    }
    found = next((words for words, is_so in strange.items() if is_so), None)
    if found:
        raise ModelError(
            f"this {architecture.model_type} has {found}, which ftkit does not write as GGUF; {_CONVERTER}"
        )
    return kind


def _write_settings(writer: Any, architecture: Any, name: str, file_type: Any) -> None:
    head_dim = getattr(architecture, "head_dim", None) or architecture.hidden_size // architecture.num_attention_heads
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_context_length(architecture.max_position_embeddings)
    writer.add_block_count(architecture.num_hidden_layers)
    writer.add_embedding_length(architecture.hidden_size)
    writer.add_feed_forward_length(architecture.intermediate_size)
    writer.add_head_count(architecture.num_attention_heads)
    writer.add_head_count_kv(architecture.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(architecture.rope_parameters["rope_theta"]))
    writer.add_layer_norm_rms_eps(architecture.rms_norm_eps)
    writer.add_vocab_size(architecture.vocab_size)


def _vocabulary(tokenizer: Any, num_rows: int) -> _Vocabulary:
    """Return a tokenizer's vocabulary.

    Args:
        tokenizer: a fast one.
        num_rows: of the table of tokens; rows without a token are named as unused.

    Raises:
        ModelError: it is not a byte-level BPE.
    """
    from gguf import TokenType

    written: dict[str, Any] = {"model": {"type": "slow"}}
    if tokenizer.is_fast:
        written = json.loads(tokenizer.backend_tokenizer.to_str())
    cut = json.dumps(written.get("pre_tokenizer"), ensure_ascii=False).replace("\\\\", "\\")
    if written["model"]["type"] != "BPE" or "ByteLevel" not in cut:
        raise ModelError(f"ftkit writes GGUF with byte-level BPE tokenizers alone, and this is another; {_CONVERTER}")
    tokens, types = [f"[PAD{number}]" for number in range(num_rows)], [int(TokenType.UNUSED)] * num_rows
    for token, number in written["model"]["vocab"].items():
        tokens[number], types[number] = token, int(TokenType.NORMAL)
    for added in written["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    merges = [one if isinstance(one, str) else " ".join(one) for one in written["model"]["merges"]]
    split = next((name for pattern, name in _SPLITS.items() if pattern in cut), "gpt-2")
    return _Vocabulary(tokens, types, merges, split)


def _write_tokenizer(writer: Any, tokenizer: Any, vocabulary: _Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.split)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"):
        number = getattr(tokenizer, name)
        if number is not None:
            getattr(writer, f"add_{name}")(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_tensors(writer: Any, model: nn.Module, stored: Stored, kind: str, precision: str) -> None:
    """Write all tensors, one at a time: first what each is, then what it holds."""
    named = dict(_named(model, kind))
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for ours, theirs in named.items():
        numbers = _type(shapes[ours], precision)
        writer.add_tensor_info(theirs, *_layout(shapes[ours], numbers), numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for ours in named:
        writer.write_tensor_data(_array(model, stored, ours, kind, precision))
    writer.close()


def _named(model: nn.Module, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the names of a model's tensors and those of llama.cpp; a tied head has none of its own."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    table = get_tensor_name_map(MODEL_ARCH[kind.upper()], cast(Any, model).config.num_hidden_layers)
    for name, _ in model.named_parameters():
        theirs = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise ModelError(f"llama.cpp has no name for the tensor {name}; {_CONVERTER}")
        yield name, theirs


def _type(shape: tuple[int, ...], precision: str) -> Any:
    """Return gguf's type of a tensor; where rows are not whole blocks of 8 bits, llama.cpp takes 16 bits too."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wanted = GGMLQuantizationType[_TYPES[precision]]
    return wanted if shape[-1] % GGML_QUANT_SIZES[wanted][0] == 0 else GGMLQuantizationType.F16


def _layout(shape: tuple[int, ...], numbers: Any) -> tuple[tuple[int, ...], "np.dtype[Any]", int]:
    """Return shape, dtype and bytes of the array that holds a tensor: types that numpy lacks are bytes."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    whole = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}
    dtype = np.dtype(whole.get(numbers, np.uint8))
    shape = shape if numbers in whole else tuple(quant_shape_to_byte_shape(shape, numbers))
    return shape, dtype, math.prod(shape) * dtype.itemsize


def _array(model: nn.Module, stored: Stored, name: str, kind: str, precision: str) -> NDArray[Any]:
    """Return a tensor as llama.cpp holds it."""
    from gguf.quants import quantize

    config = cast(Any, model).config
    weight = stored.read(name).to(torch.float32)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if kind == "llama" and heads is not None:
        # llama.cpp rotates neighbours, transformers two halves: the rows of each head change places.
        weight = weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
    array: NDArray[Any] = quantize(weight.numpy(), _type(tuple(weight.shape), precision))
    return array


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise DependencyError("writing GGUF needs the package gguf: pip install 'ftkit[gguf]'") from None
    return gguf
