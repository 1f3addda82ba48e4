"""A model in GGUF is dequantized once, into a folder that loads as any other."""

import threading

import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from ftkit.config import ModelConfig
from ftkit.errors import DeviceError, ModelError
from ftkit.gguf import as_safetensors, if_converted
from ftkit.source import load_config, load_tokenizer, resolve_source
from tests.helpers import WORDS, logits_of, ragged_split, tiny_config

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "model.layers.": "blk.",
}
"""As transformers and llama.cpp call the same tensors of a Llama."""


def gguf_name(name):
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def interleaved(weight, num_heads):
    """llama.cpp rotates neighbours, transformers two halves: the rows of each head of q and k change places."""
    return weight.reshape(num_heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, kind):
    """Write a tiny random Llama as GGUF; returns it in transformers' form, with the weights that the file holds."""
    torch.manual_seed(7)
    config = tiny_config("llama")
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    words = ["<unk>", "<pad>", "<end>", *sorted(set("".join(WORDS))), "Ġ", "go", "od", "good"]
    writer.add_token_list([*words, *(f"<{number}>" for number in range(config.vocab_size - len(words)))])
    writer.add_token_merges(["g o", "o d", "go od"])
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        if array.ndim < 2:
            writer.add_tensor(gguf_name(name), array)
            continue
        packed = quantize(array, kind)
        weight.copy_(torch.from_numpy(dequantize(packed, kind).copy()))
        if "q_proj" in name or "k_proj" in name:
            packed = interleaved(packed, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def source_of(path):
    return resolve_source(ModelConfig(name=str(path)), "causal-lm")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (GGMLQuantizationType.F32, torch.float32),
        (GGMLQuantizationType.F16, torch.float16),
        (GGMLQuantizationType.Q8_0, torch.bfloat16),
        (GGMLQuantizationType.Q4_1, torch.bfloat16),
    ],
)
def test_what_is_converted_has_the_weights_of_the_file_and_loads_plainly(kind, dtype, tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf", kind)
    for parameter in expected.parameters():
        parameter.data = parameter.data.to(dtype).float()
    source = as_safetensors(source_of(tmp_path / "tiny.gguf"), lambda _: None)
    found = transformers.AutoModelForCausalLM.from_pretrained(source.name)
    assert found.dtype == dtype
    assert not hasattr(found.config, "quantization_config")
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name].float(), weight), name
    split = ragged_split("causal-lm")
    found = transformers.AutoModelForCausalLM.from_pretrained(source.name, dtype=torch.float32)
    assert torch.equal(logits_of(found, split), logits_of(expected, split))
    tokenizer = load_tokenizer(source)
    assert tokenizer.tokenize("good") == ["good"]
    assert load_config(source, None, tokenizer.pad_token_id).pad_token_id == tokenizer.pad_token_id == 2


def test_a_file_is_converted_once_whatever_its_name_and_however_many_ask_at_once(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    (tmp_path / "copy.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    said, found = [], []
    ask = [
        threading.Thread(target=lambda name=name: found.append(as_safetensors(source_of(tmp_path / name), said.append)))
        for name in ("tiny.gguf", "copy.gguf", "tiny.gguf")
    ]
    for one in ask:
        one.start()
    for one in ask:
        one.join()
    assert len({source.name for source in found}) == 1
    assert len([text for text in said if text.startswith("converting")]) == 1
    assert len([path for path in (cache / "gguf").iterdir() if path.is_dir()]) == 1


def test_what_is_not_converted_yet_stays_where_it_is(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.F32)
    source = source_of(tmp_path / "tiny.gguf")
    assert if_converted(source) == source
    assert if_converted(source) != as_safetensors(source, lambda _: None) == if_converted(source)


@pytest.mark.parametrize("kept", [0, 3, 100, 3000, -100])
def test_a_truncated_file_is_one_sentence_and_leaves_nothing(kept, tmp_path, cache):
    write_gguf(tmp_path / "whole.gguf", GGMLQuantizationType.Q8_0)
    (tmp_path / "cut.gguf").write_bytes((tmp_path / "whole.gguf").read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"cut\.gguf") as caught:
        as_safetensors(source_of(tmp_path / "cut.gguf"), lambda _: None)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if not path.name.endswith(".lock") and path.name != "gguf"]


def test_a_cache_that_cannot_be_written_is_one_sentence_with_the_cure(tmp_path, monkeypatch):
    write_gguf(tmp_path / "tiny.gguf", GGMLQuantizationType.Q8_0)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DeviceError, match="set FTKIT_CACHE"):
        as_safetensors(source_of(tmp_path / "tiny.gguf"), lambda _: None)


def test_the_interleaving_undoes_what_transformers_does():
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    weight = np.arange(64 * 4.0, dtype=np.float32).reshape(64, 4)
    undone = LlamaTensorProcessor()._reverse_permute_weights(interleaved(weight, 2), 2, 2)
    assert np.array_equal(undone, weight)
