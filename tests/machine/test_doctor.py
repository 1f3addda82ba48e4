"""What `ftkit doctor` finds: each fault of a machine has its line and its cure."""

import socket

import pytest
import torch

from ftkit.machine import hub
from ftkit.machine.doctor import devices, host, libraries, places, tools
from ftkit.machine.doctor.examine import examine
from ftkit.machine.doctor.finding import State
from ftkit.machine.driver import Link
from ftkit.machine.hardware import Machine
from ftkit.machine.versions import Needed

GIB = 2**30


def test_a_look_has_a_line_for_each_thing_and_asks_no_network(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket, "create_connection", refuse)
    found = {one.name: one for one in examine(tmp_path / "runs", online=False)}
    assert {"python", "libraries", "cores", "memory", "compiler", "libaio", "output", "cache", "port", "hub"} <= set(
        found
    )
    assert all(one.cure for one in found.values() if one.state is not State.OK)
    assert found["libraries"].fact.count(",") == 6
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("library", "state", "is_blocking"),
    [
        (Needed("torch", ">=2.13,<2.14", "2.13.0+cpu"), None, False),
        (Needed("torch", ">=2.13,<2.14", "2.14.1"), State.PROBLEM, True),
        (Needed("torch", ">=2.13,<2.14", None), State.PROBLEM, True),
        (Needed("bitsandbytes", ">=0.50", None), State.MISSING, False),
    ],
)
def test_a_library_that_is_wrong_blocks_and_one_that_is_missing_only_where_all_need_it(library, state, is_blocking):
    wrong = [one for one in libraries._needed([library]) if one.state is not State.OK]
    assert [(one.state, one.is_blocking) for one in wrong] == ([] if state is None else [(state, is_blocking)])
    assert all(f"pip install '{library.name}{library.wanted}'" in one.cure for one in wrong)


def test_an_extra_that_is_half_there_is_missing():
    groups = {"onnx": [Needed("onnx", ">=1.20", "1.21"), Needed("onnxruntime", ">=1.25", "1.20")]}
    (found,) = libraries._extras(groups)
    assert (found.state, found.fact) == (State.MISSING, "onnxruntime 1.20, not >=1.25")
    assert "pip install 'ftkit[onnx]'" in found.cure


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 6), ["sm_80"], True),  # binary code of the same generation
        ((9, 0), ["sm_80"], False),
        ((9, 0), ["sm_80", "compute_80"], True),  # PTX is compiled for a later card
        ((6, 1), ["sm_75", "sm_80", "compute_80"], False),  # a GTX 1060 under a torch that has left Pascal
        ((7, 5), ["sm_70"], True),
        ((12, 0), ["sm_90", "sm_120a"], True),
    ],
)
def test_a_card_runs_code_of_its_generation_and_older_ptx(capability, architectures, runs):
    assert devices._has_kernels(capability, architectures) is runs


@pytest.mark.parametrize(("built_for", "said"), [(None, "is not built for CUDA"), ("13.0", "cannot use it")])
def test_a_driver_that_torch_cannot_use_is_told(monkeypatch, tmp_path, built_for, said):
    monkeypatch.setattr(devices, "_DRIVER_SIGNS", (tmp_path,))
    monkeypatch.setattr(torch.version, "cuda", built_for)
    found = devices._no_accelerator()
    assert found.state is State.PROBLEM
    assert said in found.fact


def test_a_card_with_less_lanes_than_it_could_have_is_told():
    (full,), (narrow,) = (devices._link("link 0", Link(1, 4, width, 16)) for width in (16, 4))
    assert (full.state, narrow.state) == (State.OK, State.PROBLEM)
    assert "PCIe 4.0 x16 at most, now 1.0 x4" in narrow.fact


def test_cores_that_the_control_group_does_not_grant_are_told(monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000")
    monkeypatch.setattr(host, "_QUOTA_V2", tmp_path / "cpu.max")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = host._cores(Machine(8 * GIB, None, 16))
    assert found.state is State.PROBLEM
    assert "OMP_NUM_THREADS=1" in found.cure
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert host._cores(Machine(8 * GIB, None, 16)).state is State.OK


def test_a_machine_without_memory_for_any_training_is_refused():
    assert host._memory(Machine(GIB // 2, None, 1)).is_blocking
    assert not host._memory(Machine(64 * GIB, None, 1)).is_blocking


def test_little_memory_to_pin_is_told_where_something_would_be_pinned(monkeypatch):
    for has_accelerator, state in ((True, State.PROBLEM), (False, State.OK)):
        monkeypatch.setattr(host, "_has_accelerator", lambda has=has_accelerator: has)
        assert host._locked(Machine(GIB, 8 * 2**20, 1)).state is state


def test_compilers_that_are_missing_are_named_with_their_packages(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = tools._compiler()
    assert found.state is State.MISSING
    assert "no g++ and no ninja" in found.fact
    assert "apt-get install g++ ninja-build" in found.cure


def test_an_output_that_cannot_be_a_folder_blocks_and_a_cache_does_not(tmp_path):
    file = tmp_path / "file"
    file.touch()
    for is_blocking in (True, False):
        found = places._disk("output", file / "runs", is_blocking=is_blocking)
        assert (found.state, found.is_blocking) == (State.PROBLEM, is_blocking)
        assert "cannot be written: Not a directory" in found.fact
        assert found.cure is not None
        assert "free some space" not in found.cure


def test_a_port_that_another_job_has_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(places, "_PORT", server.getsockname()[1])
        assert places._port().state is State.PROBLEM
    assert places._port().state is State.OK


def test_the_hub_is_asked_only_when_that_is_wanted(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "answers", lambda: False)
    assert places._hub(online=False).state is State.OK
    assert places._hub(online=True).state is State.MISSING
