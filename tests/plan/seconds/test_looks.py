"""What a run has seen of the processor is kept for the next one, and for plans of its kind."""

import json
import time
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from ftkit.cli.doctor import doctor
from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.machine.disk import cache_folder
from ftkit.plan.inputs.target import find_target
from ftkit.plan.looked import looked
from ftkit.plan.seconds import calibration, cpu_rates, samples
from ftkit.plan.seconds.calibration import Calibration, fingerprint
from ftkit.plan.seconds.looks import Kind, Look, find_look, keep_look, kept_looks, look_words
from ftkit.plan.seconds.speed import MEASURED_NOW, Device
from ftkit.plan.seconds.timed import Timed
from ftkit.step.observer import Phase

LORA = Kind("lora", is_decoder=False, precision="fp32")
DEVICE = Device(
    1e9, 1e9, 1e9, 1e-6, False, {("tanh", "float32"): 1e8}, timed={("mm", "float32"): [Timed(1, 2, 3.0)]},
    source=look_words("2026-11-27"), fresh_rate=4e9, compile_seconds=1e-3,
    hook_seconds=4e-5, hosts={Phase.FORWARD: 3e-5},
)  # fmt: skip
LOOK = Look("2026-11-27", LORA, DEVICE)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def run_of(method="lora"):
    config = RunConfig(method={"name": method})
    config = config.model_copy(update={"model": config.model.model_copy(update={"precision": "fp32"})})
    return resolve(config, find_target("cpu").devices)


def test_a_look_is_found_again_for_its_kind_and_its_threads_alone():
    keep_look(LOOK, 1)
    assert find_look(1, LORA) == LOOK
    assert kept_looks(1) == [LOOK]
    assert find_look(2, LORA) is None
    assert find_look(1, replace(LORA, precision="bf16")) is None


@pytest.mark.parametrize("change", [{"layout": 0}, {"machine": {}}, {"rates": None}])
def test_a_look_at_another_machine_is_not_believed(change):
    keep_look(LOOK, 1)
    (file,) = cache_folder().glob("calibration/look-*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert find_look(1, LORA) is None
    assert kept_looks(1) == []


def test_a_plan_takes_what_is_kept_and_a_calibration_wins():
    target = find_target("cpu")
    assert target.device(run_of()).source == MEASURED_NOW
    keep_look(LOOK, 1)
    assert target.device(run_of()) == DEVICE
    assert target.device(run_of("full")).source == MEASURED_NOW
    calibration.keep(Calibration("2026-11-27", fingerprint(1), replace(DEVICE, source=""), 1e9, 2e8))
    assert target.device(run_of()).source == "measured on this machine on 2026-11-27"


def test_a_look_is_taken_once_and_the_doctor_tells_of_it(monkeypatch, tmp_path):
    small = (samples.Sample("lora", is_decoder=False, width=64, length=32, batch=2),)
    monkeypatch.setattr(cpu_rates, "SAMPLES", small)
    seen = looked(find_target("cpu"), run_of()).device(run_of())
    assert seen.source.startswith("from a few steps of a small model on this processor on 20")
    assert {"addmm", "mm", "zero_dropped", "masked_fill_"} <= {name for name, _ in seen.timed}
    monkeypatch.setattr(cpu_rates, "stepper", None)  # none is made again
    assert looked(find_target("cpu"), run_of()).looked is None
    assert find_target("cpu").device(run_of()) == seen
    said = CliRunner().invoke(doctor, ["--output", str(tmp_path)]).output
    assert "or the look that a run took (lora, an encoder, fp32, 20" in said


def test_a_kind_that_no_sample_is_of_is_looked_at_with_its_own_method(monkeypatch):
    small = (samples.Sample("lora", is_decoder=False, width=64, length=32, batch=2),)
    monkeypatch.setattr(cpu_rates, "SAMPLES", small)
    monkeypatch.setattr(cpu_rates, "_FLAT_BYTES", 2**16)
    device = cpu_rates.look(1, Kind("qlora", is_decoder=False, precision="fp32"))
    assert any("4bit" in name for name, _ in device.timed)


@pytest.mark.parametrize(("device", "is_looked_at"), [(DEVICE, False), (replace(DEVICE, timed={}), True)])
def test_whether_a_processor_is_looked_at_goes_by_what_was_timed_and_not_by_words(device, is_looked_at, monkeypatch):
    seen = replace(DEVICE, source="by a look")
    monkeypatch.setattr("ftkit.plan.looked.look", lambda *_: seen)
    target = replace(find_target("cpu"), looked=replace(device, source=MEASURED_NOW))
    assert (looked(target, run_of()).looked is seen) == is_looked_at


def test_where_nothing_can_be_kept_a_run_is_planned_by_its_own_look(monkeypatch, tmp_path):
    (tmp_path / "calibration").write_text("in the way")
    monkeypatch.setattr(cpu_rates, "_look", lambda _: DEVICE)
    assert looked(find_target("cpu"), run_of()).device(run_of()).timed == DEVICE.timed
    assert find_target("cpu").device(run_of()).source == MEASURED_NOW


@pytest.mark.parametrize(("num_threads", "bound", "is_kept"), [(2, 0.05, False), (2, 1.1, True), (1, 0.05, True)])
def test_a_look_whose_threads_had_to_wait_is_not_kept(num_threads, bound, is_kept, monkeypatch):
    def wait(_):
        time.sleep(0.1)
        return DEVICE

    monkeypatch.setattr(cpu_rates, "_look", wait)
    monkeypatch.setattr(cpu_rates, "_MOST_WAITED", bound)
    assert cpu_rates.look(num_threads, LORA).timed == DEVICE.timed
    assert (find_look(num_threads, LORA) is not None) == is_kept
