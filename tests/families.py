"""Tiny models of every kind of architecture that transformers has a classifier or a language model of, without dropout.

Two layers, 32 wide, 64 tokens of vocabulary: what differs between families is their code.
"""

from typing import Any

import transformers

COMMON = {"vocab_size": 64, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2, "decoder_start_token_id": 1}
WIDE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
GROUPED = {**WIDE, "num_key_value_heads": 1, "head_dim": 16}
SHORT_WINDOW = {**GROUPED, "sliding_window": 8}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
BART = {
    **{f"{part}_{name}": size for part in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 64))},
    **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
    "d_model": 32,
    "max_position_embeddings": 64,
}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "pooler_hidden_size": 32, "position_buckets": 8}

ENCODERS: dict[str, dict[str, Any]] = {
    "albert": {**WIDE, "embedding_size": 16},
    "bart": BART,
    "bert": WIDE,
    "deberta-v2": {**WIDE, **RELATIVE},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {**WIDE, "embedding_size": 16},
    "longformer": {**WIDE, "attention_window": 8, "max_position_embeddings": 80},
    "modernbert": {**WIDE, "global_attn_every_n_layers": 2, "local_attention": 8},
    "mpnet": WIDE,
    "mt5": T5,
    "roberta": {**WIDE, "max_position_embeddings": 80},
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
}
DECODERS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 2},
    "falcon": {**WIDE, "new_decoder_architecture": False, "multi_query": True},
    "gemma": GROUPED,
    "gemma2": SHORT_WINDOW,
    "gemma3_text": SHORT_WINDOW,
    "gpt2": GPT,
    "gpt_bigcode": GPT,
    "gpt_neo": {
        **WIDE,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "gpt_neox": WIDE,
    "llama": GROUPED,
    "mistral": SHORT_WINDOW,
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 64},
    "olmo2": GROUPED,
    "opt": {**WIDE, "word_embed_proj_dim": 32, "ffn_dim": 64},
    "phi": WIDE,
    "phi3": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "stablelm": {**WIDE, "num_key_value_heads": 2},
    "starcoder2": GROUPED,
}
GENERATORS: dict[str, dict[str, Any]] = {"cohere": GROUPED, "mamba": {**WIDE, "state_size": 4}, "olmo": GROUPED}
"""Decoders without a classifier."""
READERS_OF_PADDING: dict[str, dict[str, Any]] = {
    "convbert": {**WIDE, "embedding_size": 32, "head_ratio": 2, "num_groups": 1},
    "fnet": {**WIDE, "use_tpu_fourier_optimizations": False},
}
"""Their code mixes a sequence's places with those behind it, whatever the mask."""
CASES = [
    *((family, "sequence-classification") for family in (*ENCODERS, *DECODERS)),
    *((family, "causal-lm") for family in (*DECODERS, *GENERATORS)),
]
"""Every family with the tasks that transformers has a class for."""


def architecture(family: str) -> Any:
    """Return the configuration of a tiny model, every dropout 0."""
    fields = (ENCODERS | DECODERS | GENERATORS | READERS_OF_PADDING)[family]
    config = transformers.AutoConfig.for_model(family, **(COMMON | fields))
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config
