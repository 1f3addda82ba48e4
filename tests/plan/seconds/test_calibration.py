"""What `ftkit doctor --calibrate` has measured is kept, found again, and not believed on another machine."""

import dataclasses
import json
import math

import pytest
import torch
from click.testing import CliRunner

from ftkit.cli.doctor import doctor
from ftkit.cli.plan.prediction import _saving
from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.plan.inputs.target import find_target
from ftkit.plan.needs.streamed import Streamed
from ftkit.plan.predict import predict
from ftkit.plan.seconds import calibration as kept
from ftkit.plan.seconds import cpu_rates, stopwatch
from ftkit.plan.seconds.calibration import Calibration, calibration_file, find_calibration, fingerprint
from ftkit.plan.seconds.gpu_rates import HOST_SAMPLES, Sizes, calibrate_gpu
from ftkit.plan.seconds.samples import Sample
from ftkit.plan.seconds.speed import FROM_TABLE, Device
from ftkit.plan.seconds.stopwatch import Stopwatch
from ftkit.plan.seconds.timed import Timed
from ftkit.step.observer import Phase

TIMED = {("mm", "float32"): [Timed(1000, 100, 1e-3), Timed(10**6, 10**4, 0.5)]}
DEVICE = Device(
    1e9,
    1e9,
    1e9,
    1e-6,
    False,
    timed=TIMED,
    source=kept.source_words("2026-11-26"),
    fresh_rate=4e9,
    compile_seconds=1e-3,
    hook_seconds=4e-5,
    hosts={Phase.FORWARD: 3e-5, Phase.BACKWARD: 1e-5},
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))


def calibration(**machine):
    return Calibration("2026-11-26", fingerprint(1) | machine, DEVICE, 1e9, 2e8)


def run_at(target):
    return resolve(RunConfig(), target.devices)


def test_what_was_measured_is_found_again():
    assert find_calibration(1).calibration is None
    kept.keep(calibration())
    assert find_calibration(1) == kept.Found(calibration())
    assert find_calibration(2) == kept.Found(None)  # of another number of threads


def test_what_waits_on_the_host_comes_over_the_link_that_was_measured():
    of_gpu = dataclasses.replace(calibration(), link=3e9)
    assert kept._from_tree(kept._as_tree(of_gpu)).device.host_rate == of_gpu.link
    assert kept._from_tree(kept._as_tree(calibration())).device.host_rate == math.inf


def test_what_was_measured_with_another_torch_is_said_and_not_used():
    kept.keep(calibration(torch="1.0"))
    found = find_calibration(1)
    assert found.calibration is None
    assert f"torch 1.0, now {torch.__version__}" in found.stale


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"layout": 0}), '{"layout": 2, "operators": [[1]]}'])
def test_a_file_that_cannot_be_read_is_said_and_not_used(text):
    calibration_file(1).parent.mkdir(parents=True)
    calibration_file(1).write_text(text)
    assert find_calibration(1) == kept.Found(None, f"{calibration_file(1)} cannot be read")


def test_what_is_much_larger_than_anything_that_was_timed_takes_what_the_device_reaches_at_best():
    assert DEVICE.seconds("mm.default", 10**9, 10**4, "float32") == pytest.approx(1.0)
    assert DEVICE.seconds("add.Tensor", 0, 10**9, "float32") == pytest.approx(1.0)


def test_a_plan_of_this_machine_rests_on_what_was_measured_and_says_so(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    kept.keep(calibration())
    here = predict(RunConfig(), find_target("cpu"))
    assert here.speed_source == "measured on this machine on 2026-11-26"
    assert here.device_flops == 1e9
    assert find_target("t4").device(run_at(find_target("t4"))).source == FROM_TABLE


def test_a_plan_of_a_gpu_that_was_measured_rests_on_its_own_rates_and_that_of_another_on_the_table():
    """The same probes, run on the processor that is there."""
    told: list[str] = []
    measured = calibrate_gpu(torch.device("cpu"), told.append, Sizes(64, 2**16, 2**16))
    speed = measured.device
    assert len(told) == 2 + len(HOST_SAMPLES)
    assert set(speed.hosts) == {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER}
    assert {"mm", "gemm_4bit", "native_dropout"} & set(speed.asked) >= {"mm", "gemm_4bit"}
    assert measured.link is not None
    assert speed.host_rate == measured.link
    assert min(measured.link, speed.bandwidth, speed.fp32_flops, speed.half_flops, speed.host_seconds) > 0
    machine = fingerprint("Tesla T4")
    kept.keep(dataclasses.replace(measured, machine=machine, link=1e9, disk_read=5e8))
    table = find_target("t4")
    here = dataclasses.replace(table, name="Tesla T4")
    assert here.device(run_at(here)) == dataclasses.replace(speed, is_asynchronous=True, host_rate=1e9)
    assert table.device(run_at(table)).source == FROM_TABLE
    sizes = {"layer_bytes": (1000,), "window_bytes": 1000, "resident_bytes": 1000, "staging_bytes": 0}
    sizes |= {"left_bytes": 1000, "table_bytes": 0, "head_bytes": 0, "lowest": 0}
    rates = {place: Streamed(place, **sizes).pass_seconds(here) for place in ("ram", "disk")}
    assert rates == {"ram": 1000 / 1e9, "disk": 1000 / 5e8}


def test_a_save_is_planned_with_the_disk_that_was_measured(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    here, table = find_target("cpu"), find_target("t4")
    card = dataclasses.replace(table, name="Tesla T4")
    assert "(assumed)" in _saving(10**6, here)
    assert "(assumed)" in _saving(10**6, card)
    kept.keep(calibration())
    kept.keep(dataclasses.replace(calibration(), machine=fingerprint("Tesla T4"), link=1e9))
    assert "190.73 MiB/s (measured)" in _saving(10**6, here)
    assert "190.73 MiB/s (measured)" in _saving(10**6, card)
    assert "(assumed)" in _saving(10**6, table)


def test_a_list_of_parameters_is_timed_one_by_one_as_a_tape_has_them():
    parameters, gradients = ([torch.ones(size) for size in (300, 100)] for _ in range(2))
    keys = dict(stopwatch._keys("_fused_adamw_.default", (parameters, gradients), None))
    assert keys == {
        ("_fused_fused_adamw_.default", 0, 2400, "float32"): 0.75,
        ("_fused_fused_adamw_.default", 0, 800, "float32"): 0.25,
    }


def test_the_stopwatch_sees_operators_and_not_views():
    with Stopwatch() as watch:
        torch.ones(4, 8).t() @ torch.ones(4, 2)
    assert set(watch.operators()) == {("ones", "float32"), ("mm", "float32")}
    (product,) = watch.operators()["mm", "float32"]
    assert (product.flops, product.moved) == (2 * 8 * 4 * 2, 4 * (32 + 8 + 16))


def test_a_calibration_times_what_steps_run_and_the_doctor_says_that_it_is_there(monkeypatch, tmp_path):
    # Shorter rows than 32 have a softmax in fp32 alone.
    samples = tuple(Sample("lora", is_decoder, 64, 32, 2) for is_decoder in (False, True))
    monkeypatch.setattr(cpu_rates, "SAMPLES", samples)
    monkeypatch.setattr(cpu_rates, "_TRIAL_BYTES", 2**16)
    monkeypatch.setattr(cpu_rates, "has_bf16", lambda _: True)  # slow where it is not so, and small
    monkeypatch.setattr("ftkit.cli.doctor._usual_ranks", lambda: 1)  # messages have a test of their own
    result = CliRunner().invoke(doctor, ["--calibrate", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "measured on this machine on" in result.output
    device = find_calibration(torch.get_num_threads()).calibration.device
    assert set(device.hosts) == {Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER}
    assert device.hook_seconds > 0
    for name in (
        "addmm",
        "mm",
        "baddbmm",
        "addmm_",
        "zero_dropped",
        "_softmax",
        "gelu_backward",
        "silu",
        "_fused_fused_adamw_",
        "div_",  # of all gradients at once
    ):
        assert all(one.seconds > 0 for one in device.timed[name, "float32"])
        assert name == "_fused_fused_adamw_" or device.timed[name, "bfloat16"]  # masters are in fp32
