"""The host's memory while weights are loaded, beside what a real load maps and makes."""

import os
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from ftkit.config.tree import RunConfig
from ftkit.engine.resolve import resolve
from ftkit.models import bnb
from ftkit.models.build import build_model
from ftkit.models.sources.source import load_config, resolve_source
from ftkit.models.sources.toys import decoder, make_tokenizer
from ftkit.plan.inputs.architectures import find_architecture
from ftkit.plan.inputs.case import Case, Counts
from ftkit.plan.inputs.shapes import Sequences
from ftkit.plan.inputs.target import find_target
from ftkit.plan.needs.bare import CUDA_HOST_BYTES
from ftkit.plan.needs.loading import FILE_BYTES, stored_bytes_beside
from ftkit.plan.predict import predict

AROUND = max(2**16, os.sysconf("SC_PAGE_SIZE"))
"""What is mapped around a page that is read, of each tensor (Linux: fault_around_bytes)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a model in bfloat16, in files of 4 MB at most but for its two tables."""
    place = tmp_path_factory.mktemp("model")
    make_tokenizer(place)
    model = AutoModelForCausalLM.from_config(decoder(512, num_layers=4, vocabulary=4096), dtype=torch.bfloat16)
    model.save_pretrained(place, max_shard_size="4MB")
    return place


def config_of(name, method, **model):
    return RunConfig.model_validate(
        {
            "task": "causal-lm",
            "model": {"name": str(name)} | model,
            "method": {"name": method},
            "cache": {"trunk": "off"},
            "data": {"max_length": 32},
            "batch": {"global_batch_size": 1},
        }
    )


def load(folder, method, dtype):
    config = config_of(folder, method)
    source = resolve_source(config.model, config.task)
    return build_model(config, source, load_config(source, None, 0), dtype)


def files(folder):
    return [file.stat().st_size for file in folder.glob("*.safetensors")]


def mapped_bytes(folder):
    """Return the resident pages of the safetensors of a folder in this process, in bytes."""
    rows = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    sizes = (re.search(r"^Rss:\s+(\d+) kB", row, re.MULTILINE) for row in rows if str(folder) in row.partition("\n")[0])
    return sum(1024 * int(size[1]) for size in sizes if size)


def test_weights_in_the_type_of_their_files_pass_through_memory_a_file_at_a_time(folder):
    model = load(folder, "lora", torch.bfloat16)
    resident = []

    def move(tensor):
        moved = tensor.clone()  # as to another device: it reads all of the old one, which then goes
        resident.append(mapped_bytes(folder))
        return moved

    model._apply(move)
    tensors = len(list(model.parameters()))
    assert max(files(folder)) < max(resident) < max(files(folder)) + tensors * AROUND < sum(files(folder))


def test_files_go_as_their_weights_are_packed(folder, monkeypatch):
    resident, pack = [], bnb._linear_4bit

    def packed(module, packing):
        new = pack(module, packing)
        resident.append(mapped_bytes(folder))
        return new

    monkeypatch.setattr(bnb, "_linear_4bit", packed)
    model = load(folder, "qlora", torch.bfloat16)
    tensors = len(list(model.parameters()))
    assert max(resident) < max(files(folder)) + tensors * AROUND < sum(files(folder))


def test_a_plan_counts_one_file_or_all_weights_where_their_type_is_another(folder):
    def on_host(gpu, method="lora"):
        return predict(config_of(folder, method), find_target(gpu)).host_bytes - CUDA_HOST_BYTES

    weights = sum(one.numel() for one in load(folder, "lora", torch.bfloat16).parameters())
    assert on_host("a100-40gb") == max(files(folder))
    assert on_host("t4") == weights * torch.float16.itemsize
    packed = sum(one.nbytes for one in load(folder, "qlora", torch.bfloat16).parameters())
    assert packed < on_host("a100-40gb", "qlora") - max(files(folder)) < 1.1 * packed  # the constants too


def test_a_model_that_is_known_by_name_is_planned_as_it_is_published():
    config = config_of("llama-3.1-8b", "lora")
    assert predict(config, find_target("h100")).host_bytes == CUDA_HOST_BYTES + FILE_BYTES


class Mapped(TorchDispatchMode):
    """Notes the resident pages of a folder whenever a weight is converted."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.sizes = folder, [0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default:
            self.sizes.append(mapped_bytes(self.folder))
        return result


def test_on_a_cpu_weights_of_another_type_lie_beside_the_pages_of_all_files(folder, monkeypatch):
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the mode sees what its own thread does

    def counted(dtype, precision):
        run = resolve(config_of(folder, "lora", precision=precision), find_target("cpu").devices)
        sequences = Sequences.unseen(run.config)
        case = Case.of(run, find_target("cpu"), find_architecture(run.config), sequences)
        with Mapped(folder) as mapped:
            model = load(folder, "full", dtype)
        total = sum(one.numel() for one in model.parameters())
        return total, max(mapped.sizes), stored_bytes_beside(case, Counts(total, total, total * dtype.itemsize))

    total, mapped, planned = counted(torch.float32, "fp32")
    assert planned == total * torch.bfloat16.itemsize
    assert planned <= mapped < planned + 2 * AROUND * len(files(folder)) * 8  # and what is mapped around them
    assert counted(torch.bfloat16, "bf16")[1:] == (0, 0), "nothing is converted"
