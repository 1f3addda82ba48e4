"""Safetensors that are written a tensor at a time."""

import zlib

import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from ftkit.models.saving.dtypes import digest
from ftkit.models.saving.write import write_tensors
from ftkit.models.sources.positions import DTYPES


def test_every_type_that_is_read_is_written_too(tmp_path):
    tensors = {str(dtype): torch.tensor([[0, 1, 1]]).to(dtype) for dtype in DTYPES.values()}
    kinds = {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
    write_tensors(tmp_path, kinds, tensors.items())
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: one.dtype for name, one in stored.items()} == {name: one.dtype for name, one in tensors.items()}
    assert all(torch.equal(stored[name], one) for name, one in tensors.items())


class Copies(TorchDispatchMode):
    """Notes how large the tensors are that a copy in another type is made of."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default:
            self.sizes.append(result.numel())
        return result


def test_a_large_table_is_rounded_part_by_part(tmp_path):
    table = torch.randn(3, 2**20).to(torch.bfloat16)
    with Copies() as copies:
        write_tensors(tmp_path, {"table": (torch.float32, tuple(table.shape))}, [("table", table)])
        checksum = digest(table, torch.float32, torch.float16)
    assert len(copies.sizes) == 9  # written, and rounded twice for the checksum, in three parts each
    assert max(copies.sizes) == 2**20
    assert torch.equal(load_file(tmp_path / "model.safetensors")["table"], table.float())
    assert checksum == zlib.crc32(table.float().half().numpy().tobytes())
