"""Whole predictions, and the command."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from ftkit.cli import main
from ftkit.config.engine import EngineConfig
from ftkit.config.training import OptimizerConfig
from ftkit.config.tree import BatchConfig, DataConfig, ModelConfig, RunConfig
from ftkit.engine.resolve import resolve
from ftkit.errors import DeviceError, ModelError
from ftkit.models.methods.full import Full
from ftkit.models.methods.lora import Lora, Qlora
from ftkit.plan.choices.search import cures, options_at, search
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import Target, find_target
from ftkit.plan.needs.bare import RUNTIME_BYTES
from ftkit.plan.needs.compiling import FREE_AROUND, KERNEL_BYTES, MOST_COMPILED
from ftkit.plan.needs.memory import (
    HALF_RUNTIME_BYTES,
    LATER_BYTES,
    MKL_BYTES,
)
from ftkit.plan.predict import Tapes, predict
from ftkit.plan.predicted import FormulaPrediction
from ftkit.plan.tracing.trace import UntraceableModelError
from ftkit.records.schema import Verdict
from tests.helpers import save_tiny_model
from tests.plan import models

_MKL_BYTES = MKL_BYTES if torch.backends.mkl.is_available() else 0
TAPES = Tapes()
"""Shared by the tests that plan `config()`: a trace does not depend on the budget."""


def config(name="gpt2", method=None, task="sequence-classification", **model):
    return RunConfig(
        task=task,
        model=ModelConfig(name=name, **model),
        method=method or Lora(),
        data=DataConfig(max_length=128),
    )


@pytest.mark.parametrize(
    ("name", "task", "millions"),
    [
        ("gpt2", "causal-lm", 124.4),
        ("bert-base", "sequence-classification", 109.5),
        ("llama-2-7b", "causal-lm", 6738.4),
        ("mistral-7b", "causal-lm", 7241.7),
        ("qwen2.5-0.5b", "causal-lm", 494.0),
        ("llama-3-8b", "causal-lm", 8030.3),
    ],
)
def test_an_architecture_of_the_table_has_the_published_number_of_weights(name, task, millions):
    run = config(name, Full(), task)

    assert predict(run, find_target("h200")).num_parameters == pytest.approx(millions * 1e6, rel=1e-3)


@pytest.mark.parametrize("method", [Lora(), Qlora(), Full()], ids=lambda method: method.name)
def test_the_parts_of_a_peak_add_up_to_it(method):
    prediction = predict(config(method=method), find_target("t4"))

    assert prediction.peak_breakdown.total_bytes == prediction.peak_active_bytes
    assert prediction.peak_active_bytes <= prediction.peak_reserved_bytes < prediction.peak_process_bytes


def test_four_bits_need_less_than_sixteen_and_recomputing_less_than_keeping():
    target = find_target("rtx3090")
    plain = predict(config("llama-2-7b", Lora(), "causal-lm"), target)
    packed = predict(config("llama-2-7b", Qlora(), "causal-lm"), target)
    recomputed = predict(config("llama-2-7b", Lora(), "causal-lm", gradient_checkpointing=1.0), target)

    assert packed.peak_breakdown.parameter_bytes < 0.35 * plain.peak_breakdown.parameter_bytes
    assert recomputed.peak_active_bytes < plain.peak_active_bytes
    assert recomputed.step_seconds > plain.step_seconds


def test_a_budget_below_the_weights_does_not_fit_and_says_what_is_needed():
    prediction = predict(config("llama-2-7b", Lora(), "causal-lm"), find_target(memory_budget="8GiB"))

    assert not prediction.fits
    assert "weights alone are 12.59 GiB, more than the 8.00 GiB of a GPU with 8GiB less the 381" in prediction.reason


def test_what_does_not_fit_comes_with_changes_that_do():
    run, target = config("gpt2", Full()), find_target(memory_budget="3GiB")

    assert not predict(run, target).fits
    found = cures(run, options_at(run, target))
    assert found
    assert all(predict(candidate.config, target).fits for candidate in found)


def in_pieces():
    """Return a run whose allocator caches much more than lives."""
    return config("bert-base", Full()).model_copy(
        update={"data": DataConfig(max_length=512), "batch": BatchConfig(global_batch_size=16, micro_batch_size=16)}
    )


def test_where_pieces_alone_are_in_the_way_segments_that_grow_are_offered():
    run = in_pieces()
    room = predict(run, find_target("t4"), tapes=TAPES).peak_active_bytes + 100 * 2**20
    target = find_target("t4", memory_budget=str(room + find_target("t4").context_bytes))

    prediction = predict(run, target, tapes=TAPES)
    assert not prediction.fits
    assert prediction.reason.endswith("with growing segments it fits (engine.expandable_segments=true)")
    (grown,) = [
        one for one in cures(run, options_at(run, target)) if one.changes == {"engine.expandable_segments": True}
    ]
    assert grown.prediction.fits
    assert grown.prediction.step_seconds == prediction.step_seconds


def test_what_fits_since_cached_blocks_are_given_back_shows_no_more_than_the_card_has():
    endless = predict(in_pieces(), find_target("t4"), tapes=TAPES)
    have = endless.peak_process_bytes - 2**20
    tight = predict(in_pieces(), find_target("t4", memory_budget=str(have)), tapes=TAPES)

    assert (endless.verdict, tight.verdict) == (Verdict.FITS, Verdict.FITS)
    assert tight.peak_process_bytes <= tight.process_high_bytes <= have
    assert tight.returned_bytes == endless.peak_reserved_bytes - tight.peak_reserved_bytes > 0
    assert endless.returned_bytes is None


def test_a_verdict_has_three_words_and_a_range():
    run = config("gpt2")
    sure = predict(run, find_target("rtx3060"), tapes=TAPES)
    low, high = sure.process_low_bytes, sure.process_high_bytes

    assert sure.verdict is Verdict.FITS
    assert sure.verdict_by == "the worse end: a context of 381.47 MiB, and 2.5% more reserved"
    assert low < sure.peak_process_bytes < high
    # By the larger context it does not fit, and by the smaller one, with what is cached given back, it does.
    budget = str(sure.peak_process_bytes - 50 * 2**20)
    unsure = predict(run, find_target("rtx3060", memory_budget=budget), tapes=TAPES)
    assert unsure.verdict is Verdict.MAY_NOT_FIT
    assert unsure.fits
    assert "needs" in unsure.reason
    assert unsure.verdict_by.startswith("the better end: a context of 140.88 MiB, and nothing more reserved; not by")
    none = predict(run, find_target("rtx3060", memory_budget=str(low - 2**20)), tapes=TAPES)
    assert none.verdict is Verdict.DOES_NOT_FIT
    assert not none.fits


def test_a_card_whose_context_is_published_has_no_doubt_about_it():
    assert find_target("t4").context_range == (147_718_144, 147_718_144)
    low, high = find_target("rtx3060").context_range
    assert low < high == find_target("rtx3060").context_bytes


@pytest.mark.parametrize(
    ("gpu", "low", "high"),
    [("rtx3090", 256, 381), ("rtx6000ada", 426, 520), ("h100", 610, 828), ("rtx4090", 140, 520), ("mi300x", 140, 381)],
)
def test_a_context_is_that_of_the_card_or_of_its_generation(gpu, low, high):
    assert [size >> 20 for size in find_target(gpu).context_range] == [low, high]


def test_a_search_recommends_only_what_surely_fits():
    found = search(config("gpt2"), options_at(config("gpt2"), find_target("rtx2060"), tapes=TAPES), limit=4)
    unsure = found[0].prediction.model_copy(update={"verdict": Verdict.MAY_NOT_FIT})
    assert all(one.prediction.verdict is Verdict.FITS for one in found)
    assert not replace(found[0], prediction=unsure).has_room


def test_a_search_ranks_what_fits_by_speed():
    found = search(config("gpt2"), options_at(config("gpt2"), find_target("rtx2060"), tapes=TAPES), limit=12)
    times = [candidate.prediction.step_seconds or 0.0 for candidate in found]

    assert times == sorted(times, key=float)
    assert all(candidate.prediction.fits for candidate in found)


def test_a_gpu_without_bf16_computes_in_fp16_and_refuses_bf16():
    devices = find_target("t4").devices
    assert resolve(RunConfig(), devices).precision == "fp16"
    with pytest.raises(DeviceError, match="before Ampere"):
        resolve(RunConfig(model=ModelConfig(precision="bf16")), devices)


def test_moments_in_8_bits_leave_the_attention_of_a_card_without_bf16_as_it_is():
    plans = [
        predict(config("distilgpt2").model_copy(update={"optimizer": OptimizerConfig(name=name)}), find_target("t4"))
        for name in ("adamw", "adamw_8bit")
    ]
    assert plans[0].peak_breakdown.activation_bytes == plans[1].peak_breakdown.activation_bytes


def test_an_unknown_model_is_refused_with_the_nearest_names():
    with pytest.raises(ModelError, match="llama-2-7b"):
        predict(config("nobody/llama-2-7"), find_target("t4"))


def test_a_model_that_reads_values_back_is_named_with_the_line_and_planned_by_formula(monkeypatch):
    import transformers

    forward = transformers.models.gpt2.modeling_gpt2.GPT2MLP.forward

    def reads_back(self, hidden):
        if hidden.sum().item() > 0:
            return forward(self, hidden)
        return forward(self, hidden)

    monkeypatch.setattr(transformers.models.gpt2.modeling_gpt2.GPT2MLP, "forward", reads_back)
    prediction = predict(config("gpt2"), find_target("t4"))

    assert isinstance(prediction, FormulaPrediction)
    assert prediction.found.startswith("by formula (Korthikanti et al. 2022): ")
    assert "test_predict.py" in prediction.found
    assert prediction.step_seconds is None

    engine = EngineConfig(zero_stage=2, offload_optimizer="cpu")
    offloaded = predict(config("gpt2").model_copy(update={"engine": engine}), find_target("t4"))
    moved = 12 * prediction.num_trainable_parameters  # masters and moments
    assert offloaded.peak_breakdown.optimizer_bytes == 0
    assert offloaded.host_bytes - prediction.host_bytes == offloaded.pinned_bytes == moved
    assert "2022, without ZeRO's buckets and gathered weights): " in offloaded.found


def test_the_command_prints_a_prediction_that_json_holds_too():
    runner = CliRunner()
    arguments = ["plan", "--model", "gpt2", "--gpu", "t4", "--samples", "1000"]
    text = runner.invoke(main, arguments)
    found = runner.invoke(main, [*arguments, "--json"])

    assert text.exit_code == found.exit_code == 0
    assert "fits (1 x T4" in text.output
    assert json.loads(found.output.splitlines()[-1])["num_trainable_parameters"] > 0


def test_the_command_exits_with_8_where_nothing_fits(tmp_path):
    save_tiny_model(tmp_path, "bert")
    arguments = ["plan", "--model", str(tmp_path), "--memory-budget", "100MiB"]  # less than the process itself takes

    assert CliRunner().invoke(main, arguments).exit_code == 8


def test_an_unknown_gpu_is_one_sentence():
    result = CliRunner().invoke(main, ["plan", "--gpu", "t5"])

    assert result.exit_code == 2
    assert "unknown GPU 't5'" in result.output
    assert "Traceback" not in result.output


def test_a_plan_on_a_cpu_says_what_one_process_needs():
    target = Target("cpu", "cpu", None, 2**34, num_cpus=2)
    prediction = predict(config("gpt2"), target, models.architecture("gpt2"))

    assert prediction.fits
    assert prediction.peak_reserved_bytes is None
    assert UntraceableModelError.exit_code == 4


def test_a_process_that_plans_its_own_training_starts_from_what_it_holds():
    elsewhere = Target("cpu", "cpu", None, 2**34, num_cpus=2)
    here = replace(elsewhere, held_bytes=2 * RUNTIME_BYTES)
    planned, own = (predict(config("gpt2"), target, models.architecture("gpt2")) for target in (elsewhere, here))

    assert own.peak_process_bytes == planned.peak_process_bytes + RUNTIME_BYTES + LATER_BYTES


def test_a_heap_that_is_set_is_planned_with_less_of_what_comes_and_goes(monkeypatch):
    given = Target("cpu", "cpu", None, 2**34, num_cpus=2), models.architecture("gpt2")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    before = predict(config("gpt2", task="causal-lm", precision="fp32"), *given)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
    after = predict(config("gpt2", task="causal-lm", precision="fp32"), *given)

    assert before.process_low_bytes == RUNTIME_BYTES + _MKL_BYTES + before.peak_active_bytes
    assert before.process_low_bytes == after.process_low_bytes < after.peak_process_bytes < before.peak_process_bytes


def test_what_mkl_keeps_is_planned_in_fp32_where_torch_has_mkl(monkeypatch):
    target, given = Target("cpu", "cpu", None, 2**34, num_cpus=2), models.architecture("gpt2")

    def beside_tensors(precision):
        found = predict(config("gpt2", task="causal-lm", precision=precision), target, given)
        return found.process_low_bytes - RUNTIME_BYTES - found.peak_active_bytes

    assert beside_tensors("fp32") == _MKL_BYTES
    assert beside_tensors("bf16") == 0, "it was measured in fp32 alone"
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert beside_tensors("fp32") == 0


def test_kernels_that_are_compiled_for_each_shape_are_planned_where_a_processor_multiplies_bf16(monkeypatch):
    target, given = Target("cpu", "cpu", None, 2**34, num_cpus=2), models.architecture("gpt2")

    def more(lengths, precision="bf16"):
        sequences = Sequences(num=3200, longest=16, are_equal=False, lengths=lengths)
        asked = config("gpt2", precision=precision)
        bytes_of = []
        for multiplies in (True, False):
            monkeypatch.setattr("ftkit.plan.inputs.target.has_bf16", lambda _, answer=multiplies: answer)
            bytes_of.append(predict(asked, target, given, sequences=sequences).peak_process_bytes)
        return bytes_of[0] - bytes_of[1]

    of_one_step, rest = divmod(more((16,)) - HALF_RUNTIME_BYTES, KERNEL_BYTES + FREE_AROUND)
    assert rest == 0

    def kernels(lengths):
        number, rest = divmod(more(lengths) - HALF_RUNTIME_BYTES - of_one_step * FREE_AROUND, KERNEL_BYTES)
        assert rest == 0
        return number

    assert 10 < of_one_step < 50, "of one shape"
    assert kernels((16, 16, 16)) == kernels((16,))
    assert 2 * kernels((16,)) < kernels(tuple(range(1, 17)) * 8) <= MOST_COMPILED
    assert more((9, 16), "fp32") == 0


def test_an_unknown_model_is_one_sentence_without_asking_a_hub_that_does_not_answer_again_and_again():
    with socket.socket() as closed:  # bound and not listening: a connection is refused at once
        closed.bind(("127.0.0.1", 0))
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{closed.getsockname()[1]}", "HF_HUB_OFFLINE": ""}
        command = [sys.executable, "-m", "ftkit", "plan", "--model", "gpt9", "--gpu", "t4"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | hub, check=False)

    assert done.returncode == ModelError.exit_code
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["planning", "error:"]
    assert "did you mean 'gpt2'" in done.stderr
