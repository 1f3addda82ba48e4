"""What the stacks' own code is stood in for by, where it cannot run here."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from benchmarks.stacks import compiled, fourbit, hf, torchtune, traced
from benchmarks.stacks.older_adam import Adam
from benchmarks.stacks.zero2 import Stage2
from ftkit.observe.recorder import Recorder
from ftkit.step.observer import Phase

ELEMENTS = 1024


def test_the_older_adam_has_two_temporary_lists_beside_two_moments():
    weight = nn.Parameter(torch.ones(ELEMENTS))
    weight.grad = torch.ones(ELEMENTS)
    recorder = Recorder()
    with recorder:
        adam = Adam([weight], lr=0.1)
        adam.step()
        adam.step()
    assert recorder.tape.peak_bytes() == 4 * 4 * ELEMENTS
    assert list(recorder.tape.live_bytes())[-1] == 2 * 4 * ELEMENTS
    assert float(weight[0].detach()) < 1.0


def test_stage_2_holds_flat_weights_masters_and_moments_of_its_share_and_two_buckets_in_the_backward():
    model = nn.Linear(32, 32, bias=False).half()
    recorder = Recorder()
    with recorder:
        engine = Stage2(model, recorder, ranks=4, bucket_elements=2 * ELEMENTS, lr=0.1)
        recorder.mark(Phase.LOAD)
        engine.backward(model(torch.ones(1, 32, dtype=torch.float16)).sum())
        engine.step()
        recorder.mark(Phase.OPTIMIZER)
    share = ELEMENTS // 4
    (_, loaded), (_, left) = recorder.tape.at_marks()
    assert loaded == 2 * ELEMENTS + 3 * 4 * share
    assert left == loaded
    assert recorder.tape.peak_bytes() >= loaded + 2 * 2 * 2 * ELEMENTS
    assert {birth.stream for birth in recorder.tape.births} == {0, 1}


def test_what_is_compiled_keeps_what_the_partitioner_chose_and_fuses_the_rest():
    def one_tensor(x):
        return ((x.exp() + 1).log() * 2).sigmoid()

    with traced.recording() as recorder, compiled.compiling():
        x = torch.ones(ELEMENTS, requires_grad=True)
        recorder.mark(Phase.LOAD)
        out = torch.compile(one_tensor)(x)
        recorder.mark(Phase.FORWARD)
        out.backward(out)
        recorder.mark(Phase.BACKWARD)
    (_, loaded), (_, kept), _ = recorder.tape.at_marks()
    assert kept - loaded == 4 * ELEMENTS  # the result: its backward begins at the input
    assert recorder.tape.peak_bytes() - kept == 4 * ELEMENTS  # the gradient


def test_a_fused_kernel_moves_what_it_is_given_and_what_it_makes_and_twice_what_it_changes():
    with traced.recording() as recorder, compiled.compiling():
        left, right = torch.ones(32, 32), torch.ones(32, 32)
        with recorder.during(Phase.FORWARD):
            torch.compile(lambda x, y: (x + y).exp())(left, right)
        with recorder.during(Phase.BACKWARD):
            torch.compile(lambda x, y: (x @ y).relu())(left, right)  # the product's own buffer is changed
    moved = {
        phase: [(key[2], times) for key, times in counter.items() if key[0] == compiled.KERNEL]
        for (phase, _, _), counter in recorder.tape.costs.items()
        if phase is not Phase.LOAD
    }
    assert moved == {Phase.FORWARD: [(3 * 4 * ELEMENTS, 1)], Phase.BACKWARD: [(2 * 4 * ELEMENTS, 1)]}


def test_a_checkpoint_of_torchtunes_time_saves_an_empty_tensor_before_its_inputs():
    shapes = []

    def pack(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    x = torch.ones(2, requires_grad=True)
    with torchtune.checkpoints_of_the_time(), saved_tensors_hooks(pack, lambda tensor: tensor):
        checkpoint(torch.exp, x, use_reentrant=False).sum().backward()
    assert shapes == [(0,), (2,)]
    assert torch.equal(x.grad, x.detach().exp())


TIED = {"tie_embeddings": True}


@pytest.mark.parametrize(
    ("class_name", "arch", "millions"),
    [
        (
            "OPTForCausalLM",
            {"hidden": 2048, "layers": 24, "heads": 32, "intermediate": 8192, "vocab": 50272} | TIED,
            1316,
        ),
        (
            "BloomForCausalLM",
            {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096, "vocab": 250880} | TIED,
            559,
        ),
        ("GPTJForCausalLM", {"hidden": 4096, "layers": 28, "heads": 16, "intermediate": 16384, "vocab": 50400}, 6051),
        (
            "FalconForCausalLM",
            {"hidden": 4544, "layers": 32, "heads": 71, "kv_heads": 1, "intermediate": 18176, "vocab": 65024} | TIED,
            6922,
        ),
        (
            "Gemma2ForCausalLM",
            {"hidden": 2304, "layers": 26, "heads": 8, "kv_heads": 4, "intermediate": 9216, "vocab": 256000}
            | {"head_dim": 256}
            | TIED,
            2614,
        ),
        (
            "BertForSequenceClassification",
            {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096, "vocab": 30522, "max_pos": 512},
            335,
        ),
    ],
)
def test_a_row_of_any_class_of_transformers_has_the_published_number_of_weights(class_name, arch, millions):
    head = "classification" if "Classification" in class_name else None
    row = {"model_id": "somebody/s", "arch": arch | {"arch_class": class_name}, "loss_head": head}
    model = hf.build(row, torch.bfloat16, "sdpa")
    assert round(sum(one.numel() for one in model.parameters()) / 1e6) == millions


def test_a_class_that_transformers_has_not_is_named():
    with pytest.raises(LookupError, match="no class StripedForCausalLM"):
        hf.model_type({"arch_class": "StripedForCausalLM"})


SMALL = {"hidden": 64, "layers": 1, "heads": 4, "kv_heads": 4, "intermediate": 128, "vocab": 256}


@pytest.mark.parametrize(
    ("class_name", "said", "found"),
    [
        ("LlamaForCausalLM", "query,value (lora_query, lora_value)", ["q_proj", "v_proj"]),
        ("LlamaForCausalLM", "q_proj, o_proj", ["o_proj", "q_proj"]),
        ("GPT2LMHeadModel", "all linear", ["c_attn", "c_fc", "c_proj"]),
        ("BertForSequenceClassification", "all-linear", ["dense", "key", "query", "value"]),
    ],
)
def test_adapted_layers_have_the_names_of_the_model(class_name, said, found):
    head = "classification" if "Classification" in class_name else None
    row = {"model_id": "s/s", "arch": SMALL | {"arch_class": class_name}, "loss_head": head}
    model = hf.build(row, torch.bfloat16, "sdpa")
    assert hf.adapted({"lora_target_modules": said}, model) == found
    with pytest.raises(LookupError, match="no linear layer wide"):
        hf.adapted({"lora_target_modules": "wide"}, model)


def test_layers_that_gptq_has_packed_are_adapted_by_their_names():
    model = nn.ModuleDict({"q_proj": fourbit.GptqLinear(64, 64, 32, None), "lm_head": nn.Linear(64, 8)})
    assert hf.adapted({"lora_target_modules": "q_proj"}, model) == ["q_proj"]
    assert hf.targets_of_all(model) == ["q_proj"]
