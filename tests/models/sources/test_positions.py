"""Safetensors are read by position: the same numbers, and a file that is not whole is told."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ftkit.models.sources.positions import PositionFile

TENSORS = {
    "a": torch.randn(3, 5),
    "b": torch.randn(7).bfloat16(),
    "c": torch.arange(6).reshape(2, 3),
    "d": torch.tensor(2.5),
    "e": torch.empty(0, 4),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "some.safetensors", metadata={"format": "pt"})
    return tmp_path / "some.safetensors"


def test_tensors_are_those_that_were_written(path):
    file = PositionFile(path)
    assert file.keys() == list(file.places)
    for name, tensor in TENSORS.items():
        assert torch.equal(file.read(name), tensor)
        assert file.get_slice(name).get_shape() == list(tensor.shape)


def test_a_tensor_is_read_into_a_part_of_other_memory(path):
    memory = torch.zeros(128, dtype=torch.uint8)
    PositionFile(path).read_into("a", memory[64:124].view(torch.float32).view(3, 5))
    assert torch.equal(memory[64:124].view(torch.float32).view(3, 5), TENSORS["a"])
    assert not memory[:64].any()


@pytest.mark.parametrize("kept", [0, 5, 40, -1])
def test_a_file_that_is_cut_off_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(SafetensorError, match=r"truncated|of the \d+ that its header tells of"):
        PositionFile(path)


def test_a_file_that_is_cut_off_after_it_was_opened_is_told_by_the_tensor(path):
    file = PositionFile(path)
    place = file.places["c"]
    path.write_bytes(path.read_bytes()[: place.offset + 1])
    with pytest.raises(SafetensorError, match="ends inside c"):
        file.read("c")
