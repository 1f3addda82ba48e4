"""What only an NVIDIA GPU can show: `scripts/test -m gpu tests/gpu`, a few minutes on one card.

Nobody's figures are written here: each test holds one thing that the card says against another.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from ftkit.machine import driver, memory
from ftkit.machine.process import ProcessContext, join, leave
from ftkit.models.activations import offload
from ftkit.models.pinned import pin
from ftkit.models.streaming.stream import stream_of
from ftkit.records.files import read_record
from tests.helpers import build, ragged_split, save_tiny_model, take_steps
from tests.models.streaming import conftest as streaming

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
ROOT = Path(__file__).parents[2]
MIB = 2**20


def ftkit(*arguments, **variables):
    """Run a command in a process of its own, on one card."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-m", "ftkit", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def profiled(folder, *more, **variables):
    base = ["--steps", 3, "--max-length", 64, "--global-batch-size", 16, "--output", folder, "--json"]
    return json.loads(ftkit("profile", *base, *more, **variables))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The embedded default under every method, measured."""
    return profiled(tmp_path_factory.mktemp("sweep"), "--sweep", "method=feature-extraction,lora,qlora,full")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "bert", "bert")


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory):
    """Six layers, so that some come back while others compute."""
    folder = save_tiny_model(tmp_path_factory.mktemp("model") / "llama", "llama")
    config = transformers.AutoConfig.from_pretrained(folder, num_hidden_layers=6)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def process():
    alone = ProcessContext()
    join(alone)
    yield alone
    leave()


def test_the_allocators_statistics_are_what_is_measured(rows):
    for row in rows:
        assert row["status"] == "completed", row["reason"]
        assert row["device"] == torch.cuda.get_device_name(0)
        assert row["active_source"] == "allocator statistics"
        assert 0 < row["peak_active_bytes"] <= row["peak_reserved_bytes"]
        assert {phase["phase"] for phase in row["phases"]} == {
            "load", "forward", "backward", "optimizer", "evaluation"
        }  # fmt: skip
        assert all(phase["host_bytes"] > 64 * MIB for phase in row["phases"])
        assert row["step_seconds"] > 0
        assert "cuda" in row["versions"]


def test_the_plan_is_near_the_allocators_statistics(rows):
    for row in rows:
        # The workspaces of cuBLAS differ between cards and are most of what a model this small holds.
        assert row["peak_active_bytes"] == pytest.approx(row["predicted_peak_active_bytes"], rel=0.1, abs=16 * MIB)
        assert row["peak_reserved_bytes"] == pytest.approx(row["predicted_peak_reserved_bytes"], rel=0.1, abs=40 * MIB)


def test_what_the_recorder_counts_is_below_what_the_allocator_rounds_it_up_to(rows):
    for row in rows:
        counted = sum(row["peak_breakdown"].values())
        assert 0.5 * row["peak_active_bytes"] < counted <= row["peak_active_bytes"] + MIB


def test_utilization_is_a_share_where_the_card_is_known(rows):
    shares = [row["model_flops_utilization"] for row in rows]
    assert all(share is None or 0 < share < 1 for share in shares)


def test_the_driver_says_no_less_than_the_allocator(process):
    held = torch.ones(256 * MIB, dtype=torch.uint8, device=process.device)
    said = driver.device_process_bytes(process.device)
    if said is None:
        pytest.skip("the driver does not know this process (no nvidia-ml-py, or a container's own process numbers)")
    assert said >= torch.cuda.memory_reserved(process.device) >= held.nbytes


def test_peaks_start_anew_from_what_is_held(process):
    torch.ones(256 * MIB, dtype=torch.uint8, device=process.device)  # and let go of
    memory.reset_peaks(process.device)
    active, reserved = memory.peak_allocator_bytes(process.device)
    assert active == torch.cuda.memory_allocated(process.device)
    assert reserved == torch.cuda.memory_reserved(process.device)


@pytest.mark.parametrize("command", ["train", "profile"])
def test_a_snapshot_is_a_file_for_torchs_viewer(tmp_path, command):
    more = ["--max-steps", 3, "--set", "data.max_train_samples=200"] if command == "train" else ["--steps", 1]
    ftkit(command, "--memory-snapshot", "--output", tmp_path / "out", "--global-batch-size", 8, *more)
    (path,) = (tmp_path / "out").rglob("memory_snapshot_rank0.pickle")
    assert path.stat().st_size > 10_000
    with path.open("rb") as file:
        assert file.read(1) == b"\x80"  # a pickle begins so; it is torch's viewer that reads it


def test_a_training_step_is_recorded_on_the_card_alone(tmp_path):
    more = ["--max-steps", 3, "--global-batch-size", 8, "--set", "data.max_train_samples=200"]
    ftkit("train", "--memory-timeline", "--output", tmp_path / "out", *more)
    record = read_record(tmp_path / "out")
    assert record.timeline is not None
    assert record.result is not None
    totals = [sum(parts) for parts in zip(*record.timeline.live_bytes.values(), strict=True)]
    assert 0 < max(totals) <= record.result.measurement.peak_active_bytes + MIB


def bits(parameter):
    """Return a copy of its bytes: packed weights, read as numbers, are not numbers here and there."""
    return parameter.detach().clone().view(torch.uint8)


def steps(model, process, dtype, *settings):
    config, engine = build(["batch.global_batch_size=8", *settings], model, dtype, process)
    frozen = [bits(one) for one in engine.model.parameters() if not one.requires_grad]
    before = engine.trainable_state()
    outcome = take_steps(config, engine, ragged_split(config.task), num_steps=4, rate=0.01)
    after = engine.trainable_state()
    assert all(not torch.equal(before[name], after[name]) for name in before), "all that trains moves"
    now = [bits(one) for one in engine.model.parameters() if not one.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(frozen, now, strict=True)), "what is frozen does not"
    return outcome


def test_fp16_scales_its_loss_and_gives_the_losses_of_fp32(model, process):
    half, whole = (steps(model, process, dtype, "method=full") for dtype in (torch.float16, torch.float32))
    assert half.losses == pytest.approx(whole.losses, abs=0.02)  # eleven bits of mantissa over two layers
    assert "loss_scale/" in half.engine.optimizer_state()


def test_a_lora_step_on_the_card_gives_the_losses_of_the_cpu(model, process, monkeypatch):
    on_card = steps(model, process, torch.float32, "method=lora")
    monkeypatch.setattr(ProcessContext, "device", property(lambda _: torch.device("cpu")))
    on_cpu = steps(model, ProcessContext(), torch.float32, "method=lora")
    assert on_card.losses == pytest.approx(on_cpu.losses, rel=1e-4)  # sums in another order


def test_a_qlora_step_trains_over_frozen_packed_weights(model, process):
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    outcome = steps(model, process, dtype, "method=qlora")
    packed = [one for one in outcome.engine.model.parameters() if type(one).__name__ == "Params4bit"]
    assert packed
    assert all(one.device.type == "cuda" for one in packed)


def test_expandable_segments_reserve_no_more_than_segments_of_fixed_size(tmp_path):
    (fixed,) = profiled(tmp_path / "fixed", "--no-plan")
    (grown,) = profiled(tmp_path / "grown", "--no-plan", "--set", "engine.expandable_segments=true")
    assert grown["peak_active_bytes"] == pytest.approx(fixed["peak_active_bytes"], rel=0.01)
    assert grown["peak_active_bytes"] <= grown["peak_reserved_bytes"]
    # Segments grow by 2 MiB pages (20 MiB in the large pool) in place of being cut from what is there.
    assert grown["peak_reserved_bytes"] <= fixed["peak_reserved_bytes"] + 22 * MIB


def test_more_than_the_card_has_is_a_row_out_of_memory(tmp_path):
    more = ["--global-batch-size", 1_000_000, "--micro-batch-size", 1_000_000]  # over the 16 of the others
    (row,) = profiled(tmp_path, "--no-plan", *more)
    assert row["status"] == "out of memory"
    assert "out of memory" in row["reason"]


@pytest.mark.parametrize("recompute", ["none", "cheap", "layer"])
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_activations_that_wait_on_the_host_change_no_loss_and_no_weight_to_the_bit(
    method, recompute, deep_model, process, monkeypatch
):
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    settings = [f"method={method}", f"model.recompute={recompute}"]
    here, away = (
        steps(deep_model, process, dtype, *settings, f"model.offload_activations={word}") for word in ("false", "true")
    )
    assert here.losses == away.losses
    before, after = here.engine.trainable_state(), away.engine.trainable_state()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


RAM, DISK, ALL = "engine.stream_layers=ram", "engine.stream_layers=disk", "engine.stream_micro_batches=all"
HEAD = "engine.stream_head=true"


@pytest.mark.parametrize(
    ("family", "method", "way"),
    [
        ("llama", "lora", (RAM,)),
        ("llama", "lora", (DISK, ALL, "model.recompute=cheap")),
        ("llama", "lora", (RAM, ALL, "model.offload_activations=true")),
        ("llama", "qlora", (RAM, ALL, HEAD)),
        ("llama", "qlora", (DISK, HEAD)),
        ("gemma2", "lora", (RAM, HEAD)),  # whose head is the table of tokens too
    ],
)
def test_layers_that_come_over_a_stream_of_their_own_compute_the_same_to_the_bit(
    family, method, way, tmp_path, process, monkeypatch
):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(offload, "SMALLEST_BYTES", 1)
    folder = streaming.deep_model(tmp_path / "model", family)
    settings = ["task=causal-lm", f"method.name={method}", "method.dropout=0", "batch.micro_batch_size=2"]
    resident, streamed = (
        take_steps(*build([*settings, *more], folder, torch.float32, process), ragged_split("causal-lm"))
        for more in (("model.recompute=layer",), way)
    )
    assert streamed.losses == resident.losses
    wanted, found = resident.engine.trainable_state(), streamed.engine.trainable_state()
    assert [name for name, one in wanted.items() if not torch.equal(found[name], one)] == []
    stream = stream_of(streamed.engine.model)
    assert all(one.device.type == "cuda" for one in stream.window.memory)
    if RAM in way and stream.source.is_pinned:
        # To the byte, and by CUDA's own word; memory that it does not know would be copied while computing waits.
        assert stream.source.read(next(stream.layout.slots))[0].is_pinned()
        assert stream.source.table.is_pinned()


def test_memory_that_was_pinned_in_place_is_let_go_of_with_its_owner_and_a_refusal_harms_nothing_later(process):
    memory, owner = torch.zeros(MIB, dtype=torch.uint8), torch.nn.Module()
    assert pin(memory, owner)
    assert memory.is_pinned()
    assert not pin(memory, owner), "it is pinned already, which CUDA refuses"
    assert float(torch.ones(8, device=process.device).sum()) == 8.0
    del owner
    assert not memory.is_pinned()


def test_the_rates_of_this_card_are_measured(tmp_path):
    said = ftkit("doctor", "--calibrate", FTKIT_CACHE=tmp_path)
    assert "measured on this machine" in said


@pytest.mark.parametrize("recompute", ["none", "cheap", "layer"])
def test_the_plan_of_activations_on_the_host_is_near_the_allocators_statistics(recompute, tmp_path):
    """Twelve layers of a thousand numbers, 8 x 1024 tokens: an input is 16 MiB, so that what moves is seen."""
    model = tmp_path / "model"
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=1000)).save_pretrained(model)
    save_tiny_model(tmp_path / "words", "llama")
    for path in (tmp_path / "words").glob("token*"):
        path.rename(model / path.name)
    base = ["--model", model, "--task", "causal-lm", "--method", "lora", "--recompute", recompute, "--precision"]
    base += ["bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16", "--steps", 3, "--json"]
    base += ["--max-length", 1024, "--global-batch-size", 16, "--set", "batch.micro_batch_size=8"]
    rows = [
        json.loads(ftkit("profile", *base, "--set", f"model.offload_activations={word}", "--output", tmp_path / word))[
            0
        ]
        for word in ("false", "true")
    ]
    here, away = rows
    for row in rows:
        assert row["status"] == "completed", row["reason"]
        # As of the rows above; copies that are late hold nothing longer, since the computation waits for them.
        assert row["peak_active_bytes"] == pytest.approx(row["predicted_peak_active_bytes"], rel=0.02, abs=16 * MIB)
    input_bytes = 8 * 1024 * 1024 * 2
    assert here["peak_active_bytes"] - away["peak_active_bytes"] > 7 * input_bytes
