"""Every operator that a trace of twelve architectures records is known, with what CUDA holds beside its results.

What is in none of the tables nobody has thought about: read its kernel, and write down what it allocates. Files are
torch's, below aten/src/ATen/native/. All of them were weighed in 109 training steps on an H200 with torch 2.11 (CUDA
13.0), one operator at a time; `tests/gpu/test_operators.py` weighs those that are corrected on any card.
"""

import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoConfig

from ftkit.config.tree import ModelConfig, RunConfig
from ftkit.data.batching import Shape
from ftkit.machine.hardware import find_gpu
from ftkit.models.methods.full import Full
from ftkit.plan.tracing import foreign
from ftkit.plan.tracing.trace import trace
from tests.plan import models

ARCHITECTURES = {
    "gpt2": {},
    "bert": {},
    "roberta": {},
    "distilbert": models.OTHERS["distilbert"] | {"n_layers": 2},
    "deberta-v2": models.OTHERS["deberta-v2"],
    "modernbert": models.OTHERS["modernbert"],
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16},
    "mistral": {"num_key_value_heads": 2},
    "mixtral": models.OTHERS["mixtral"],
}
CLASSIFIERS = ("bert", "roberta", "distilbert", "deberta-v2", "modernbert")

ALIKE = {
    # One element at a time (TensorIterator.cpp, cuda/Loops.cuh): nothing beside the results.
    *("_to_copy", "abs", "add", "add_", "bitwise_and", "bitwise_not", "ceil", "clamp", "clone", "copy_", "cos", "div"),
    *("div_", "exp_", "floor_divide", "ge", "gelu", "gelu_backward", "gt", "le", "log", "lt", "masked_fill", "mul"),
    *("mul_", "native_dropout", "native_dropout_backward", "ne", "neg", "pow", "reciprocal", "relu", "rsqrt", "rsub"),
    *("sign", "silu", "silu_backward", "sin", "sqrt", "sub", "sub_", "tanh", "tanh_", "tanh_backward"),
    *("threshold_backward", "where"),
    # Made, filled or joined (TensorFactories.cpp, cuda/Shape.cu).
    *(
        "arange",
        "cat",
        "full",
        "full_like",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "repeat",
        "scalar_tensor",
    ),
    *("stack", "zeros", "zeros_like", "select_backward", "slice_backward"),
    # Read or written by place, without a sort (cuda/IndexKernel.cu, cuda/ScatterGatherKernel.cu).
    *("embedding", "gather", "index", "index_add", "index_select", "scatter", "scatter_add", "scatter_add_"),
    # Matrix products, whose workspace is counted once (cuda/Blas.cpp; `cublas_workspace`). With a bias they go by
    # cuBLASLt, which shares it; up to torch 2.11 that had another of 1 MiB for each thread.
    *("addmm", "addmm_", "bmm", "mm"),
    # Softmaxes and losses of a row, which a block computes (cuda/SoftMax.cu, cuda/Loss.cu).
    *("_log_softmax", "_log_softmax_backward_data", "_softmax", "nll_loss_backward", "nll_loss_forward"),
    # The optimizer's kernels over lists, which are told one by one (cuda/FusedAdamWKernel.cu, cuda/AmpKernels.cu).
    *("_amp_update_scale_", "_fused_foreach_add_", "_fused_foreach_sub_", "_fused_fused_adamw_", "_fusedstack"),
    "_fused_amp_foreach_non_finite_check_and_unscale_",
    # No computation.
    *("_record_function_enter_new", "_record_function_exit", "promote_types"),
}
"""What CUDA makes as it is recorded: the results alone."""

CORRECTED = {
    "native_layer_norm": "mean and deviation are in fp32 (cuda/layer_norm_kernel.cu); `storage_size`",
    "embedding_dense_backward": "sorted tokens and sums of ten rows (cuda/EmbeddingBackwardKernel.cu); `scratch_size`",
    "_softmax_backward_data": "gradient times result (cuda/SoftMax.cu); `scratch_size`",
    "_scaled_dot_product_efficient_attention": "called in the place of the CPU's kernel; `attention`",
    "_scaled_dot_product_efficient_attention_backward": "its workspace (cuda/attention_backward.cu); `scratch_size`",
    "sum": "partial sums of blocks that share a result (cuda/Reduce.cuh); `reductions`",
    **dict.fromkeys(("amax", "linalg_vector_norm", "mean"), "as sum"),
}
"""What CUDA holds otherwise than what runs without it, and is put right."""

NOT_COUNTED = {
    "cumsum": "the values in the type of the sums, where that is another: 8 bytes a token",
    "histc": "the bounds, two values (cuda/SummaryOps.cu); experts alone",
    "index_put": "a sort of the places where values are added, 49 bytes for each (cuda/Indexing.cu); experts alone",
    "index_put_": "as index_put",
    "sort": "keys and places of the tokens' experts once more, 26 bytes for each (cuda/Sort.cpp)",
    "topk": "none for so few experts, a sort of them beyond (cuda/TensorTopK.cu)",
    "native_layer_norm_backward": "nothing in 24 calls that were measured (layer_norm_kernel.cu)",
    "grouped_mm_fallback": "transformers' own loop over experts, on cards before Ampere",
    "grouped_mm_fallback_backward": "as grouped_mm_fallback",
}
"""What CUDA holds beside the results that is not counted: it grows with tokens, indices or blocks alone.

As an H200 with torch 2.11 (CUDA 13.0) showed; less than half a megabyte each for 8192 tokens."""


@pytest.fixture(scope="module")
def recorded():
    """The operators of one step of full fine-tuning, which has the gradients of all weights, by architecture."""
    found = {}
    for kind, sizes in ARCHITECTURES.items():
        is_classifier = kind in CLASSIFIERS
        ends = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        tiny = AutoConfig.for_model(kind, **shape | {"vocab_size": 512, "pad_token_id": 0} | ends | sizes)
        task = "sequence-classification" if is_classifier else "causal-lm"
        run = RunConfig(task=task, model=ModelConfig(name=kind), method=Full())
        tape = trace(run, tiny, torch.float16, Shape(2, 16, 1, is_padded=is_classifier), find_gpu("t4"))
        found[kind] = {name.partition(".")[0] for costs in tape.costs.values() for name, *_ in costs}
    return found


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_operator_of_an_architecture_is_known_with_what_its_cuda_kernel_holds(kind, recorded):
    unknown = recorded[kind] - ALIKE - CORRECTED.keys() - NOT_COUNTED.keys()
    assert not unknown, f"read the CUDA kernels of {sorted(unknown)}, and write down what they hold"


def test_no_operator_is_in_two_tables_and_each_is_recorded_somewhere(recorded):
    assert not (ALIKE & CORRECTED.keys() | ALIKE & NOT_COUNTED.keys() | CORRECTED.keys() & NOT_COUNTED.keys())
    assert ALIKE | CORRECTED.keys() | NOT_COUNTED.keys() == set().union(*recorded.values())


def test_versions_of_transformers_that_do_not_ask_a_device_for_groups_are_traced_as_they_are(monkeypatch):
    from transformers.integrations import moe

    monkeypatch.delattr(moe, "_can_use_grouped_mm")
    with foreign.grouped_products():
        pass
    monkeypatch.setitem(sys.modules, "transformers.integrations.moe", None)
    with foreign.grouped_products():
        pass
    monkeypatch.setattr(foreign, "find_spec", lambda name: find_spec("json.decoder" if name.count(".") == 1 else name))
    with foreign.grouped_products():  # of the time when its integrations were one file
        pass
