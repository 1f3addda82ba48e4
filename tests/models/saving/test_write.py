"""Safetensors that are written a tensor at a time."""

import torch
from safetensors.torch import load_file

from ftkit.models.saving.write import write_tensors
from ftkit.models.sources.positions import DTYPES


def test_every_type_that_is_read_is_written_too(tmp_path):
    tensors = {str(dtype): torch.tensor([[0, 1, 1]]).to(dtype) for dtype in DTYPES.values()}
    kinds = {name: (one.dtype, tuple(one.shape)) for name, one in tensors.items()}
    write_tensors(tmp_path, kinds, tensors.items())
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: one.dtype for name, one in stored.items()} == {name: one.dtype for name, one in tensors.items()}
    assert all(torch.equal(stored[name], one) for name, one in tensors.items())
