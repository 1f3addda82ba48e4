"""One training run of a model whose frozen weights are not all in memory: ftkit, DeepSpeed's ZeRO-3, or accelerate.

`benchmarks/larger_than_memory.py` starts it, in a process of its own:

    python -m benchmarks.offloaders NAME WORK.json FOLDER

    ftkit:disk[:cold][:SETTING...]  ftkit, layers streamed from the model's files; cold: which the system does not keep
    ftkit:none[:SETTING...]         ftkit, all weights in memory
    deepspeed:cpu|nvme[:recompute]  ZeRO-3 with its parameters offloaded, PEFT
    accelerate:disk[:recompute]     accelerate's disk_offload, PEFT

DeepSpeed's `nvme` compiles its reader (libaio) at the first use, five minutes of one core; `TORCH_EXTENSIONS_DIR` says
where it is kept.

All of them take the same steps over the same texts, with the same adapters, and with torch's AdamW. The others run in a
loop that does nothing but train, and their memory is that of the loop alone: while they load, they may hold the model
whole. ftkit is the whole of `ftkit train`, loading and saving included, without its plan and its scores.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.contestants import with_adapters
from benchmarks.job import ALPHA, DROPOUT, RANK
from benchmarks.live_bytes import LiveBytes
from ftkit.machine.memory import peak_resident_bytes, reset_peaks

LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Work:
    """The work that every contestant does.

    Attributes:
        model: a folder.
        data: a folder with `train.jsonl`.
        max_length: tokens of every text, which is longer and is cut.
        micro_batches: of a step.
        micro_batch_size: sequences of a forward.
        num_steps: optimizer steps.
        counts_tensors: whether the bytes of tensors are counted, which takes longer: such a run's times say nothing.
    """

    model: str
    data: str
    max_length: int
    micro_batches: int
    micro_batch_size: int
    num_steps: int
    counts_tensors: bool = False

    @property
    def global_batch_size(self) -> int:
        """Sequences of a step."""
        return self.micro_batches * self.micro_batch_size


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
        step_seconds: of each step.
        losses: of each step.
        resident_bytes: the most that the process held, as Linux counts it (VmHWM).
        imported_bytes: of them what it held when it had imported torch, transformers and PEFT and done nothing yet.
        tensor_bytes: the most that tensors took, as `benchmarks/live_bytes.py` counts them; None where nobody counted.
    """

    step_seconds: list[float]
    losses: list[float]
    tensor_bytes: int | None
    resident_bytes: int
    imported_bytes: int


Steps = tuple[list[float], list[float], int | None]
"""Seconds and loss of each step, and the most bytes of tensors."""


def counting(work: Work) -> AbstractContextManager[Any]:
    """Return what counts the bytes of tensors while it is entered; None is entered where they are not counted."""
    return LiveBytes() if work.counts_tensors else nullcontext()


def run_ftkit(place: str, settings: Sequence[str], work: Work, folder: Path) -> Steps:
    """Train with ftkit."""
    import ftkit

    given = [
        "task=causal-lm",
        f"model.name={work.model}",
        "model.precision=fp32",
        f"data.dataset={work.data}",
        f"data.max_length={work.max_length}",
        "data.validation_share=0",
        "data.test_share=0",
        "method.name=lora",
        f"method.rank={RANK}",
        f"method.alpha={ALPHA}",
        f"method.dropout={DROPOUT}",
        f"batch.global_batch_size={work.global_batch_size}",
        f"batch.micro_batch_size={work.micro_batch_size}",
        f"optimizer.learning_rate={LEARNING_RATE}",
        "schedule.name=constant",
        f"engine.stream_layers={place}",
        "training.epochs=1",
        f"training.max_steps={work.num_steps}",
        "training.log_every=1",
        "training.plan_first=false",
        "training.trial_step=never",
        f"output.folder={folder}",
        "output.overwrite=true",
        "output.reopen=false",
        *(one for one in settings if one != "cold"),
    ]
    with ExitStack() as stack:
        if "cold" in settings:
            stack.enter_context(kept_cold(Path(work.model) / "model.safetensors"))
        counted = stack.enter_context(counting(work))
        record = ftkit.train(ftkit.load_config(settings=given))
    seconds, losses = [step.step_seconds for step in record.steps], [step.loss for step in record.steps]
    return seconds, losses, counted and counted.peak


@contextmanager
def kept_cold(path: Path) -> Iterator[None]:
    """Have the system drop what it keeps of a file, twice a second, so that reading it again is reading the disk."""
    done = threading.Event()

    def drop(file: int) -> None:
        while not done.wait(0.5):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)

    file = os.open(path, os.O_RDONLY)
    thread = threading.Thread(target=drop, args=(file,))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.close(file)


def encoded(work: Work) -> Any:
    """Return the tokens of all texts, [N, T]."""
    import torch
    from transformers import AutoTokenizer

    lines = (Path(work.data) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    texts = [json.loads(line)["text"] for line in lines]
    return torch.tensor(tokenizer(texts, truncation=True, max_length=work.max_length).input_ids)


def loop(work: Work, micro_step: Callable[[Any], Any], update: Callable[[], None]) -> Steps:
    """Take the steps of a plain loop.

    Args:
        work: what is done.
        micro_step: forward and backward of one micro-batch [B, T]; returns its loss, a mean.
        update: after those of a step.
    """
    tokens, seconds, losses = encoded(work), [], []
    reset_peaks(tokens.device)  # from here on the peak is that of the steps
    with counting(work) as counted:
        for step in tokens.split(work.global_batch_size)[: work.num_steps]:
            began = time.perf_counter()
            loss = sum(float(micro_step(part)) for part in step.split(work.micro_batch_size))
            update()
            seconds.append(time.perf_counter() - began)
            losses.append(loss / work.micro_batches)
    return seconds, losses, counted and counted.peak


def load(work: Work, recomputes: bool) -> Any:
    """Return the model, in training mode."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    model.config.use_cache = False
    if recomputes:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def run_deepspeed(place: str, settings: Sequence[str], work: Work, folder: Path) -> Steps:
    """Train with PEFT under ZeRO-3 whose parameters are offloaded; the window is that of ftkit, two layers."""
    import deepspeed
    import torch
    from transformers import AutoConfig
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    sizes = AutoConfig.from_pretrained(work.model)
    layer = sizes.hidden_size * (2 * sizes.hidden_size + 3 * sizes.intermediate_size)
    layer += 2 * sizes.hidden_size * sizes.num_key_value_heads * (sizes.hidden_size // sizes.num_attention_heads)
    # A buffer has room for the largest weight, the table of tokens; the window needs one for each matrix.
    offload = {
        "device": place, "pin_memory": False, "buffer_count": 16, "buffer_size": sizes.vocab_size * sizes.hidden_size,
    }  # fmt: skip
    config = {
        "train_micro_batch_size_per_gpu": work.micro_batch_size,
        "gradient_accumulation_steps": work.micro_batches,
        "gradient_clipping": 1.0,
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": False,
            "stage3_max_live_parameters": 2 * layer,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": layer,
            "stage3_param_persistence_threshold": 0,
            "offload_param": offload if place == "cpu" else {**offload, "nvme_path": str(folder)},
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    meeting = f"file://{folder.resolve()}/meeting"
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, init_method=meeting, rank=0, world_size=1)
    said = HfDeepSpeedConfig(config)  # while it lives, weights are partitioned and offloaded as they are loaded
    model = with_adapters(load(work, "recompute" in settings), is_lm=True)
    trained = [one for one in model.parameters() if one.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(trained, lr=LEARNING_RATE), config=config
    )
    del said

    def micro_step(tokens: Any) -> Any:
        loss = engine(input_ids=tokens, labels=tokens).loss
        engine.backward(loss)
        engine.step()
        return loss.detach()

    return loop(work, micro_step, lambda: None)


def run_accelerate(place: str, settings: Sequence[str], work: Work, folder: Path) -> Steps:
    """Train with PEFT over a model whose weights accelerate brings from the disk, module by module."""
    import torch
    from accelerate import disk_offload

    assert place == "disk"
    model = with_adapters(load(work, "recompute" in settings), is_lm=True)
    trained = [one for one in model.parameters() if one.requires_grad]
    # Module by module: of a model that is offloaded whole, PEFT makes adapters without numbers, on `meta`.
    for name, module in list(model.named_modules()):
        own = list(module.parameters(recurse=False))
        if own and not any(one.requires_grad for one in own):
            disk_offload(module, str(folder / name), torch.device("cpu"))
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def micro_step(tokens: Any) -> Any:
        loss = model(input_ids=tokens, labels=tokens).loss
        (loss / work.micro_batches).backward()
        return loss.detach()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return loop(work, micro_step, update)


PROGRAMS = {"ftkit": run_ftkit, "deepspeed": run_deepspeed, "accelerate": run_accelerate}


def imported_bytes() -> int:
    """Import what every contestant uses, and return the resident memory of a process that has done no more."""
    import peft  # noqa: F401  # importing is all that is wanted
    import torch  # noqa: F401
    import transformers  # noqa: F401

    return known_resident_bytes()


def known_resident_bytes() -> int:
    """Return the most that this process has held."""
    resident = peak_resident_bytes()
    assert resident is not None, "only Linux says what a process has held"
    return resident


def main() -> None:
    """Run one contestant, and print the result as JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="such as ftkit:disk or deepspeed:cpu:recompute")
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    work = Work(**json.loads(arguments.work.read_text(encoding="utf-8")))
    program, place, *settings = arguments.name.split(":")
    imported = imported_bytes()
    seconds, losses, tensors = PROGRAMS[program](place, settings, work, arguments.folder)
    print(json.dumps(asdict(Result(seconds, losses, tensors, known_resident_bytes(), imported))))


if __name__ == "__main__":
    main()
