"""The models of stacks of own code, which build them by name; what a row states of its model is held against these.

Source: litgpt/config.py (LitGPT 0.2.0 and 0.5.3; `padded_vocab_size`), torchtune/models/llama3_2/_model_builders.py
(0.4.0), torchvision/models/vision_transformer.py (0.15.2).
"""

from typing import Any

from benchmarks.rows import Arch, Row

SIZES = ("arch_class", "hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "tie_embeddings")
MODELS: dict[str, tuple[Any, ...]] = {
    "llama-2-7b-hf": ("LlamaForCausalLM", 4096, 32, 32, 32, 128, 11008, 32000, False),
    "llama-2-13b-hf": ("LlamaForCausalLM", 5120, 40, 40, 40, 128, 13824, 32000, False),
    "meta-llama-3-8b": ("LlamaForCausalLM", 4096, 32, 32, 8, 128, 14336, 128256, False),
    "llama-3.1-8b": ("LlamaForCausalLM", 4096, 32, 32, 8, 128, 14336, 128256, False),
    "llama-3.2-1b": ("LlamaForCausalLM", 2048, 16, 32, 8, 64, 8192, 128256, True),
    "llama-3.2-3b": ("LlamaForCausalLM", 3072, 28, 24, 8, 128, 8192, 128256, True),
    "tinyllama-1.1b": ("LlamaForCausalLM", 2048, 22, 32, 4, 64, 5632, 32000, False),
    "mistral-7b-v0.1": ("MistralForCausalLM", 4096, 32, 32, 8, 128, 14336, 32000, False),
    "gemma-2b": ("GemmaForCausalLM", 2048, 18, 8, 1, 256, 16384, 256000, True),
    "gemma-7b": ("GemmaForCausalLM", 3072, 28, 16, 16, 256, 24576, 256000, True),
    "gemma-2-2b": ("Gemma2ForCausalLM", 2304, 26, 8, 4, 256, 9216, 256000, True),
    "gemma-2-9b": ("Gemma2ForCausalLM", 3584, 42, 16, 8, 256, 14336, 256000, True),
    "phi-1_5": ("PhiForCausalLM", 2048, 24, 32, 32, 64, 8192, 51200, False),
    "phi-2": ("PhiForCausalLM", 2560, 32, 32, 32, 80, 10240, 51200, False),
    "phi-3-mini-4k-instruct": ("Phi3ForCausalLM", 3072, 32, 32, 32, 96, 8192, 32064, False),
    "falcon-7b": ("FalconForCausalLM", 4544, 32, 71, 1, 64, 18176, 65024, True),
    "falcon-40b": ("FalconForCausalLM", 8192, 60, 128, 8, 64, 32768, 65024, True),
    "stablelm-base-alpha-3b": ("GPTNeoXForCausalLM", 4096, 16, 32, 32, 128, 16384, 50688, False),
    "vit_l_16": ("torchvision VisionTransformer", 1024, 24, 16, 16, 64, 4096, None, False),
}
"""The last part of a model's name, in small letters, to the `SIZES` of it."""


def reason_of_another_model(row: Row) -> str | None:
    """Return what a row states of its model that the model of its name, which is built, has not; None: nothing.

    Args:
        row: of a stack that builds its models by name. A row without an `arch` leaves the sizes to the name.
    """
    stated: dict[str, Any] = {**(row["arch"] or {})}
    known = dict(zip(SIZES, MODELS.get(row["model_id"].rsplit("/", 1)[-1].lower(), ()), strict=False))
    for name in Arch.__annotations__:
        if stated.get(name) not in (None, known.get(name)):
            has = known.get(name, "none that is known here")
            return (
                f"its model's {name!r} is {stated[name]}, and {row['model_id']}, which is built by its name, has {has}"
            )
    return None
