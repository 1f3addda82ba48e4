"""A tiny Llama as a GGUF file."""

import torch
import transformers
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize

from tests.helpers import WORDS, tiny_config

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
