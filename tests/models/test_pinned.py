"""Pinned memory where CUDA fails; that it is pinned and let go of is seen in tests/gpu."""

from types import SimpleNamespace

import pytest
import torch

from ftkit.models import pinned


def test_memory_is_let_go_of_though_the_device_has_failed(monkeypatch):
    def fail():
        raise RuntimeError("an illegal memory access was encountered")

    def let_go_of(address):
        let_go.append(address)
        return 0

    memory = torch.zeros(8, dtype=torch.uint8)
    let_go: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostUnregister=let_go_of))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        pinned._unpin(memory)
    assert let_go == [memory.data_ptr()]
