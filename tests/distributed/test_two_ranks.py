"""One launch of two ranks under DeepSpeed runs every case; here each is held against one plain process."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ftkit.machine.process import ProcessContext
from ftkit.training.checkpoints.checkpoint import load_checkpoint
from tests.distributed.worker import (
    BOUNDED,
    CUT,
    DTYPES,
    answers_of,
    cached_cases,
    cases,
    settings_of,
    split_of,
    streamed_cases,
)
from tests.helpers import build, logits_of, take_steps

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[2]
CASES = cases()
UNCUT = "batch.micro_batch_tokens=4096"
# In half precision each cut rounds its own sums: 2**-8 relative for bf16, 2**-11 for fp16, over a few operations.
TOLERANCE = {"fp32": 1e-6, "bf16": 1e-2, "fp16": 2e-3}


@pytest.fixture(scope="session")
def launch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two-ranks")
    tools = Path(sys.executable).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FTKIT_VERBOSE": ""}
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    worker = str(Path(__file__).with_name("worker.py"))
    command = [str(tools / "deepspeed"), "--quiet", "--num_accelerators", "2", "--no_local_rank", worker, str(folder)]
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = started.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)  # a time limit must not leave two ranks at work
    assert started.returncode == 0, said[-6000:]
    return folder, json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="session")
def alone(launch):
    """What one plain process gives for a case, uncut: the oracle; taken once for all stages of a method."""
    folder, _ = launch
    kept = {}

    def oracle(case):
        key = (case["model"], case["method"], case["task"], case["dtype"], case.get("kind"), case.get("windows"))
        if key not in kept:
            # fp16 matrices are too slow on a CPU for an oracle; fp32 tells the same within fp16's rounding.
            dtype = torch.float32 if case["dtype"] == "fp16" else DTYPES[case["dtype"]]
            plain = {**case, "stage": 0, "cut": UNCUT, "settings": []}
            config, engine = build(settings_of(plain), folder / "models" / case["model"], dtype, ProcessContext())
            split = split_of(case)
            outcome = take_steps(config, engine, split)
            logits = logits_of(engine.model, split)
            kept[key] = outcome, logits, take_steps(config, engine, split_of(case, seed=1), 2)
        return kept[key]

    return oracle


def named(case):
    return case["name"]


@pytest.mark.parametrize("case", CASES, ids=named)
def test_two_ranks_give_the_losses_and_norms_of_one_uncut_plain_process(case, launch, alone):
    found = launch[1][case["name"]]
    expected, _, _ = alone(case)
    tolerance = TOLERANCE[case["dtype"]]
    assert found["engine"] == ("plain" if case["stage"] == 0 else "deepspeed")
    np.testing.assert_allclose(found["losses"], expected.losses, rtol=tolerance, atol=tolerance)
    # A norm is a root of a sum of squares over all weights, and later ones follow updates by Adam, which divides by
    # small roots: ten times the loss's tolerance.
    np.testing.assert_allclose(found["norms"], expected.norms, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.get("settings") == ["model.recompute=cheap"]], ids=named
)
def test_under_zero_3_a_layer_that_keeps_its_products_takes_the_same_steps_to_the_bit(case, launch):
    keeps_all = launch[1][case["name"].removesuffix("-recompute=cheap")]
    found = launch[1][case["name"]]

    assert (found["losses"], found["norms"]) == (keeps_all["losses"], keeps_all["norms"])


FP32 = [case for case in CASES if case["dtype"] == "fp32"]


@pytest.mark.parametrize("case", FP32, ids=named)
def test_two_ranks_go_on_from_their_checkpoint_as_if_never_stopped(case, launch, alone):
    found = launch[1][case["name"]]
    np.testing.assert_allclose(found["resumed"], alone(case)[2].losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [case for case in FP32 if case["name"].startswith("gpt2-lora")], ids=named)
def test_two_ranks_that_undo_a_step_go_on_as_if_it_had_never_begun(case, launch):
    found = launch[1][case["name"]]
    assert found["undone"] == found["losses"]


@pytest.mark.parametrize("case", FP32, ids=named)
def test_what_two_ranks_saved_reloads_plainly_to_the_same_logits(case, launch, alone):
    folder, found = launch
    split = split_of(case)
    model = reload(case, folder)
    logits = logits_of(model, split)
    expected = torch.tensor(found[case["name"]]["logits"])
    torch.testing.assert_close(logits.flatten()[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, alone(case)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if "windows" in case], ids=named)
def test_two_ranks_answer_texts_in_windows_as_one_does_wherever_the_windows_of_a_text_lie(case, launch, alone):
    answers = answers_of(alone(case)[2].engine, split_of(case))
    np.testing.assert_allclose(launch[1][case["name"]]["answers"], answers, rtol=1e-4, atol=1e-4)


def test_no_rank_holds_more_than_two_tensors_at_once_when_a_partitioned_model_is_rounded_and_saved(launch):
    found = launch[1][BOUNDED]["gathered"]
    # One that is being written, and the next, which is gathered meanwhile.
    assert max(max(most) for most in found["most"]) <= 2 * found["largest"] < found["total"] / 2
    assert found["is_rounded"]


@pytest.mark.parametrize("case", cached_cases(), ids=lambda case: case["name"])
def test_two_ranks_with_a_trunk_computed_once_train_bit_by_bit_as_without(case, launch):
    found = launch[1][case["name"]]
    assert found["cached"] == found["whole"]
    assert found["moved"] == []
    # The ranks divide the work; the case under ZeRO-2 comes second, and finds what the plain one has written.
    assert found["written"] == ([[0, 2, 4, 6], [1, 3, 5, 7]] if case["name"].endswith("zero0") else [[], []])


@pytest.mark.parametrize("case", streamed_cases(), ids=named)
def test_two_ranks_with_streamed_layers_train_bit_by_bit_as_with_all_weights_in_memory(case, launch):
    found = launch[1][case["name"]]
    assert found["streamed"] == found["resident"]
    assert found["moved"] == []


def test_two_ranks_stream_from_the_same_memory_of_their_host(launch):
    mine, other = launch[1]["streamed-together-ram-qlora-bf16"]["mark"]  # after the first rank has written there
    assert mine == other


def reload(case, folder):
    """Load with transformers and PEFT alone."""
    saved = folder / "saved" / case["name"] / "model"
    is_causal = case["task"] == "causal-lm"
    kind = transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForSequenceClassification
    if case["method"] in ("feature-extraction", "full"):
        return kind.from_pretrained(saved)
    from peft import PeftModel

    extra: dict[str, Any] = {} if is_causal else {"num_labels": 3}
    if case["method"] == "qlora":
        extra["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["score", "classifier", "pooler", "lm_head"],
        )
    base = kind.from_pretrained(folder / "models" / case["model"], pad_token_id=1, dtype=torch.float32, **extra)
    for module in base.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False  # else it evaluates in bf16, whatever its compute dtype
    return PeftModel.from_pretrained(base, saved)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_checkpoint_of_two_ranks_resumes_in_one_plain_process(stage, method, launch, alone):
    folder, _ = launch
    case = next(case for case in FP32 if (case["model"], case["method"], case["stage"]) == ("gpt2", method, stage))
    plain = {**case, "stage": 0, "cut": CUT, "settings": []}
    config, engine = build(settings_of(plain), folder / "models" / "gpt2", torch.float32, ProcessContext())
    _, weights, moments = load_checkpoint(folder / "saved" / case["name"] / "checkpoints" / "step-00000003")
    engine.load_trainable_state(weights)
    engine.load_optimizer_state(moments)
    losses = take_steps(config, engine, split_of(case, seed=1), 2).losses
    np.testing.assert_allclose(losses, alone(case)[2].losses, rtol=1e-5, atol=1e-5)
