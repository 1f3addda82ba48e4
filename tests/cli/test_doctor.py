"""`ftkit doctor`: lines or JSON, and an exit code."""

import json

import pytest
import torch
from click.testing import CliRunner

from ftkit.cli import doctor as command
from ftkit.cli import main
from ftkit.cli.doctor import doctor
from ftkit.machine.doctor.finding import State
from ftkit.plan.seconds.calibration import Calibration, fingerprint
from ftkit.plan.seconds.speed import Device
from ftkit.sweep.matrix import Tried


def test_json_has_every_line_and_the_exit_code_says_that_training_works(tmp_path):
    result = CliRunner().invoke(doctor, ["--json", "--output", str(tmp_path)])
    assert result.exit_code == 0
    lines = json.loads(result.output)
    assert all(set(line) == {"name", "state", "fact", "cure", "is_blocking"} for line in lines)


def test_where_no_training_can_run_the_exit_code_is_7_and_nothing_is_tried(tmp_path):
    (tmp_path / "file").touch()
    result = CliRunner().invoke(doctor, ["--try", "--output", str(tmp_path / "file" / "runs")])
    assert result.exit_code == 7
    assert "name a folder that you can make and write with --output" in result.output
    assert "ZeRO-2" not in result.output


@pytest.mark.parametrize(("reasons", "code"), [((None, "no ninja"), 0), (("no room", "no ninja"), 7)])
def test_a_cell_that_fails_has_its_reason_and_blocks_only_where_all_fail(monkeypatch, tmp_path, reasons, code):
    cells = [
        Tried("lora", engine, reason, 1.0, None) for engine, reason in zip(("plain", "ZeRO-2"), reasons, strict=True)
    ]
    monkeypatch.setattr(command, "try_all", lambda: iter(cells))
    result = CliRunner().invoke(doctor, ["--try", "--output", str(tmp_path)])
    assert result.exit_code == code
    assert "lora, ZeRO-2               no ninja" in result.output
    assert "--method lora --set engine.name=deepspeed --set engine.zero_stage=2" in result.output


def test_where_the_device_cannot_be_measured_no_cure_is_named(monkeypatch):
    monkeypatch.setattr(command, "_accelerator", lambda: torch.device("mps", 0))
    found = command._rates()
    assert (found.state, found.cure) == (State.OK, None)
    assert found.fact.startswith("from the table of cards")


def test_a_calibration_that_could_not_be_kept_is_refused_before_it_is_taken(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FTKIT_CACHE", str(tmp_path / "file" / "cache"))
    result = CliRunner().invoke(main, ["doctor", "--calibrate"])
    assert result.exit_code == 2  # as of any folder that a user names and that cannot be made
    cache = tmp_path / "file" / "cache"
    assert result.stderr == f"error: cannot make {cache}: Not a directory; name another folder with FTKIT_CACHE\n"


def test_what_was_measured_names_one_thread_and_several():
    device = Device(1e9, 1e9, 1e9, 1e-6, False, source="measured here")
    for count, said in ((1, "1 thread,"), (2, "2 threads,")):
        assert said in command._measured(Calibration("2026-11-26", fingerprint(count), device, 1e9, 2e8))
