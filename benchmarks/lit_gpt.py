"""LitGPT as a contestant: its own model, its own LoRA and its own loop, over the same blocks of tokens.

It is run by an interpreter of its own, since it pins older versions of transformers and its hub's client. Its adapters
stand beside the same layers; query, key and value are one matrix to it. It writes its weights in its own format once,
beside the folder of the model. The seconds are those of its `fit`, without the two batches that it validates there.
"""

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.job import ALPHA, DROPOUT, RANK, Job, token_ids


def timed(home: Any, name: str) -> list[tuple[float, Any]]:
    """Let a function of a module be timed from here on; return a list that gets the seconds and answer of each call."""
    function, calls = vars(home)[name], list[tuple[float, Any]]()

    def run(*arguments: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        answer = function(*arguments, **settings)
        calls.append((time.perf_counter() - began, answer))
        return answer

    vars(home)[name] = run
    return calls


def converted(model: Path) -> Path:
    """Return the folder of a model's weights as LitGPT reads them, which is made where it is not there."""
    folder = model.with_name(f"{model.name}-litgpt")
    if not (folder / "lit_model.pth").exists():
        folder.mkdir(exist_ok=True)
        for file in model.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        convert = import_module("litgpt.scripts.convert_hf_checkpoint").convert_hf_checkpoint
        convert(folder, model_name="SmolLM2-135M")
    return folder


def blocks(job: Job, split: str) -> list[dict[str, Any]]:
    """Return the blocks of a split as LitGPT's collate function takes them."""
    import torch
    import transformers

    ids = token_ids(job, split, transformers.AutoTokenizer.from_pretrained(job.model))["input_ids"]
    counts = ({"raw": len(block), "raw_plus_prompt_template": len(block)} for block in ids)
    tensors = (torch.tensor(block) for block in ids)
    return [{"input_ids": one, "labels": one, "token_counts": few} for one, few in zip(tensors, counts, strict=True)]


def data_of(job: Job) -> Any:
    """Return LitGPT's data module over the blocks of a job."""
    from functools import partial

    base: Any = import_module("litgpt.data.base")
    loader: Any = import_module("torch.utils.data").DataLoader

    class Blocks(base.DataModule):  # type: ignore[misc]  # its base is not installed beside ftkit
        prompt_style = None

        def connect(self, **settings: Any) -> None:  # noqa: ARG002  # it is told what the job says
            self.loader = partial(loader, batch_size=job.micro_batch_size, collate_fn=base.get_sft_collate_fn())

        def train_dataloader(self) -> Any:
            return self.loader(blocks(job, "train"), shuffle=True)

        def val_dataloader(self) -> Any:
            return self.loader(blocks(job, "test"))

    return Blocks()


def run_litgpt(name: str, job: Job, folder: Path, max_steps: int | None) -> tuple[float, float]:  # noqa: ARG001  # one form
    """Model language; return seconds of training and the mean over batches of the test split's loss.

    Args:
        name: `litgpt`.
        job: a causal-lm with LoRA.
        folder: for what it writes.
        max_steps: after which it stops; None: after its epochs.
    """
    assert (job.task, job.method) == ("causal-lm", "lora")
    arguments, lora = import_module("litgpt.args"), import_module("litgpt.finetune.lora")
    for step in ("save_hyperparameters", "save_prompt_style", "merge_lora"):  # of its command line; adapters are saved
        vars(lora)[step] = lambda *_, **__: None
    fits, validations = timed(lora, "fit"), timed(lora, "validate")
    steps = max_steps or int(job.epochs * (len(blocks(job, "train")) // job.global_batch_size))
    lora.setup(
        converted(Path(job.model)),
        folder,
        precision="32-true",
        lora_r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=DROPOUT,
        **{f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")},
        data=data_of(job),
        train=arguments.TrainArgs(
            global_batch_size=job.global_batch_size,
            micro_batch_size=job.micro_batch_size,
            lr_warmup_steps=1,
            epochs=100,  # it ends by its steps; at the end of its epochs it writes an example
            max_steps=steps,
            max_seq_length=job.max_length,
        ),
        eval=arguments.EvalArgs(interval=10**6, max_iters=1, max_new_tokens=1, final_validation=True),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": job.learning_rate, "weight_decay": 0.01},
        },
        seed=job.seed,
    )
    return fits[0][0] - validations[0][0], float(validations[-1][1])
