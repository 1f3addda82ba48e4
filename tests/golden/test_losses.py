"""The losses of eight small runs, bit by bit: a change of code that changes the mathematics shows here.

They are the same bits where torch, the processor and the number of threads are those of the recorded runs. Elsewhere
sums are made in another order, and they are compared within that: 1e-4 in fp32 and 0.05 in bf16, relative, which are a
hundred roundings, for the few products of these models and three updates. `--regenerate` writes them anew.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ftkit.config.files import load_config
from ftkit.machine.process import ProcessContext
from ftkit.training.loop import train_run
from ftkit.training.reporters import Reporters
from tests.golden.conftest import EXPECTED
from tests.helpers import WORDS, save_tiny_model

FILE = EXPECTED / "losses.json"
CAUSAL = ["task=causal-lm", "data.max_length=16"]
NUMBERS = ["data.label_kind=regression"]
RUNS = {
    "plain, feature extraction, classes, fp32": ["bert", "feature-extraction", "fp32"],
    "plain, LoRA, causal, bf16": ["llama", "lora", "bf16", *CAUSAL],
    "plain, QLoRA, classes, fp32": ["llama", "qlora", "fp32"],
    "plain, full, numbers, bf16": ["bert", "full", "bf16", *NUMBERS],
    "ZeRO-2, feature extraction, numbers, bf16": ["bert", "feature-extraction", "bf16", *NUMBERS],
    "ZeRO-2, LoRA, classes, fp32": ["gpt2", "lora", "fp32"],
    "ZeRO-2, QLoRA, causal, bf16": ["llama", "qlora", "bf16", *CAUSAL],
    "ZeRO-2, full, causal, fp32": ["gpt2", "full", "fp32", *CAUSAL],
}
BOUNDS = {"fp32": 1e-4, "bf16": 0.05}


def environment():
    """What decides in which order sums are made: virtual machines give different processors one name."""
    info = Path("/proc/cpuinfo")
    first = info.read_text().partition("\n\n")[0] if info.is_file() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    known = {key.strip(): value.strip() for key, _, value in pairs}
    return {
        "torch": torch.__version__,
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "processor": [known.get(key) for key in ("model name", "cpu family", "model", "stepping")],
        "half": [flag for flag in known.get("flags", "").split() if "bf16" in flag or "fp16" in flag],
        "libraries": {"mkl": torch.backends.mkl.is_available(), "oneDNN": torch.backends.mkldnn.is_available()},
    }


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """The losses and gradient norms of each run, and its last validation."""
    folder, random = tmp_path_factory.mktemp("losses"), np.random.default_rng(0)
    for family in ("bert", "gpt2", "llama"):
        save_tiny_model(folder / family, family)
    rows = [random.choice(WORDS, size=random.integers(2, 12)).tolist() for _ in range(48)]
    classes = [{"text": " ".join(words), "label": ("no", "yes")["good" in words]} for words in rows]
    numbers = [{"text": " ".join(words), "label": len(words) + 0.5} for words in rows]
    for name, lines in (("classes", classes), ("numbers", numbers)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: taken(folder, name, *run) for name, run in RUNS.items()}
    finally:
        torch.set_num_threads(threads)


def taken(folder, name, family, method, precision, *more):
    """Train three steps, as a user does."""
    data = folder / ("numbers.jsonl" if NUMBERS[0] in more else "classes.jsonl")
    settings = [
        f"model.name={folder / family}", f"data.dataset={data}", f"output.folder={folder / name}",
        f"method.name={method}", f"model.precision={precision}", "output.reopen=false", "training.plan_first=false",
        "training.max_steps=3", "training.log_every=1", "batch.global_batch_size=8", "batch.micro_batch_size=4",
        "optimizer.learning_rate=0.003", *(["engine.zero_stage=2"] if name.startswith("ZeRO-2") else []), *more,
    ]  # fmt: skip
    record = train_run(load_config(settings=settings), ProcessContext(), Reporters())
    figures = [figure for line in record.steps for figure in (line.loss, line.grad_norm)]
    return [*figures, record.last_evaluation("validation").loss]


def test_the_losses_of_eight_small_runs_are_the_recorded_ones(losses, request):
    here = environment()
    if request.config.getoption("--regenerate"):
        FILE.write_text(json.dumps({"environment": here, "runs": losses}, indent=2) + "\n")
    recorded = json.loads(FILE.read_text())
    assert losses.keys() == recorded["runs"].keys()
    is_same = here == recorded["environment"]
    if not is_same:
        warnings.warn(f"compared to rounding: recorded on {recorded['environment']}, and this is {here}", stacklevel=1)
    for name, figures in losses.items():
        bound = 0.0 if is_same else BOUNDS[name.rpartition(", ")[2]]
        expected = pytest.approx(recorded["runs"][name], rel=bound, abs=bound)
        assert figures == expected, f"{name}: the mathematics changed; if so it should: --regenerate"
