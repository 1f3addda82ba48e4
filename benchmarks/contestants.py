"""One training run of one program on one core: ftkit, HF Trainer (with PEFT for adapters), or one of the others.

`benchmarks/beside.py` starts it, in a process of its own:

    python benchmarks/contestants.py NAME JOB.json FOLDER [--count]

All read the same lines of text, take the same number of epochs over the same global batch at the same learning rate,
with the same adapters on the same layers and the same rates of dropout, score the test split at the end, and save.
"""

import argparse
import json
import resource
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.job import ALPHA, DROPOUT, FTKIT, LITGPT, LLAMAFACTORY, OTHERS, RANK, TORCHTUNE, Job, texts, token_ids
from benchmarks.lit_gpt import run_litgpt
from benchmarks.live_bytes import LiveBytes
from benchmarks.llama_factory import run_llamafactory
from benchmarks.torch_tune import run_torchtune

SCHEDULE = Path("/proc/self/schedstat")
"""Linux: nanoseconds that this thread ran, nanoseconds that it waited for its core, and turns."""
STACK = (FTKIT, *OTHERS, "torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Result:
    """What one run gave.

    Attributes:
        seconds: from the start of the process to the saved model.
        train_seconds: of the steps.
        score: accuracy on the test split, or for causal-lm its loss; None of a program that scores nothing.
        resident_bytes: the most that the process held.
        counted_bytes: the most that live tensors held in two steps; None where nothing was counted.
        versions: of the libraries of `STACK` that this interpreter has.
        waited_seconds: for which the main thread could have run and its core did something else.
        processor_seconds: that this process and those that it started worked, imports and all.
    """

    seconds: float
    train_seconds: float
    score: float | None
    resident_bytes: int
    counted_bytes: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    waited_seconds: float = 0.0
    processor_seconds: float = 0.0


@dataclass(frozen=True)
class Trainer:
    """The settings of HF Trainer that may change its time and memory.

    Attributes:
        precision: `fp32`, `amp` (bf16 autocast) or `bf16` (weights in bf16).
        sampling: its `train_sampling_strategy`.
        checkpointing: whether it recomputes activations.
    """

    precision: str = "fp32"
    sampling: str = "random"
    checkpointing: bool = False

    @classmethod
    def named(cls, name: str) -> "Trainer":
        """Return the settings that a name such as `hf:amp:group_by_length:recompute` spells."""
        _, precision, *rest = name.split(":")
        return cls(precision, rest[0] if rest else "random", "recompute" in rest)


def versions() -> dict[str, str]:
    """Return the versions of the libraries of `STACK` that are installed."""
    installed = {one.metadata["Name"] for one in metadata.distributions()}
    return {name: metadata.version(name) for name in STACK if name in installed}


def run_ftkit(name: str, job: Job, folder: Path, max_steps: int | None) -> tuple[float, float]:
    """Train with ftkit; return seconds of training and the score.

    Args:
        name: `ftkit`, or with a further setting behind it: `ftkit:model.recompute=layer`.
        job: what is done.
        folder: for what it leaves.
        max_steps: after which it stops; None: after its epochs.
    """
    import ftkit

    further = name.split(":")[1:]
    rates = [f"method.rank={RANK}", f"method.alpha={ALPHA}", f"method.dropout={DROPOUT}"]
    settings = [
        f"task={job.task}",
        f"model.name={job.model}",
        f"data.dataset={job.data}",
        f"data.max_length={job.max_length}",
        "data.validation_share=0",
        f"method.name={job.method}",
        *(rates if job.method != "full" else []),
        f"batch.global_batch_size={job.global_batch_size}",
        f"optimizer.learning_rate={job.learning_rate}",
        f"training.epochs={job.epochs}",
        f"training.seed={job.seed}",
        f"output.folder={folder}",
        "output.overwrite=true",
        *([f"training.max_steps={max_steps}"] if max_steps else []),
        *further,
        *job.settings,
    ]
    record = ftkit.train(ftkit.load_config(settings=settings))
    scores = record.last_evaluation("test")
    assert record.result is not None
    assert scores is not None
    score = scores.loss if job.task == "causal-lm" else scores.accuracy
    assert score is not None
    return record.result.train_seconds, score


def with_adapters(model: Any, *, is_lm: bool) -> Any:
    """Return a model with PEFT's adapters beside all of its linear layers."""
    import peft

    task = peft.TaskType.CAUSAL_LM if is_lm else peft.TaskType.SEQ_CLS
    adapters = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules="all-linear", task_type=task
    )
    return peft.get_peft_model(model, adapters)


def loss_of_targets(trainer: Any) -> float:
    """Return the mean loss over all targets of a language model's test split, as ftkit scores.

    `Trainer.evaluate` weighs each batch by its sequences, however short the last block is.
    """
    import torch

    sums, num_targets = 0.0, 0
    trainer.model.eval()
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            targets = int((batch["labels"][:, 1:] != -100).sum())
            sums += targets * float(trainer.model(**batch).loss)
            num_targets += targets
    return sums / num_targets


def run_trainer(name: str, job: Job, folder: Path, max_steps: int | None) -> tuple[float, float]:
    """Train with HF Trainer; return seconds of training and the score."""
    import torch
    import transformers
    from datasets import Dataset

    settings = Trainer.named(name)
    transformers.set_seed(job.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = {split: texts(job, split) for split in ("train", "test")}
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    is_lm = job.task == "causal-lm"
    if is_lm:
        packing = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if settings.precision == "amp" else dtype,
        )
        packed = {"quantization_config": packing} if job.method == "qlora" else {}
        model = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype, **packed)
    else:
        names = sorted({row["label"] for row in rows["train"]})
        numbers = {label: number for number, label in enumerate(names)}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            job.model, dtype=dtype, num_labels=len(names), id2label=dict(enumerate(names)), label2id=numbers
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False

    def encode(split: str) -> Dataset:
        ids = token_ids(job, split, tokenizer)
        labels = ids["input_ids"] if is_lm else [numbers[row["label"]] for row in rows[split]]
        return Dataset.from_dict({**ids, "labels": labels})

    data = {split: encode(split) for split in rows}
    adapted = model if job.method == "full" else with_adapters(model, is_lm=is_lm)
    if settings.checkpointing:
        adapted.enable_input_require_grads()
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=job.micro_batch_size,
        gradient_accumulation_steps=job.global_batch_size // job.micro_batch_size,
        per_device_eval_batch_size=job.micro_batch_size,
        num_train_epochs=job.epochs,
        max_steps=max_steps or -1,
        learning_rate=job.learning_rate,
        warmup_steps=0.06,
        weight_decay=0.01,
        bf16=settings.precision == "amp",
        train_sampling_strategy=settings.sampling,
        gradient_checkpointing=settings.checkpointing,
        seed=job.seed,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
    )
    collate = (
        transformers.DataCollatorForSeq2Seq(tokenizer)  # that for language models drops end tokens, which pad here
        if is_lm
        else transformers.DataCollatorWithPadding(tokenizer)
    )

    def accuracy(predictions: Any) -> dict[str, float]:
        return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}

    trainer = transformers.Trainer(
        model=adapted,
        args=arguments,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        data_collator=collate,
        compute_metrics=None if is_lm else accuracy,
    )
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    score = loss_of_targets(trainer) if is_lm else float(trainer.evaluate()["eval_accuracy"])
    trainer.save_model(str(folder / "model"))
    return seconds, score


def main() -> None:
    """Run one contestant, and print the result as JSON on the last line."""
    started = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    hf = "hf:fp32|amp|bf16:random|group_by_length|batch_rebalance[:recompute]"
    parser.add_argument("name", help=f"ftkit[:KEY=VALUE], {hf} llamafactory[:kept], litgpt or torchtune")
    parser.add_argument("job", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", action="store_true", help="two steps alone, with the bytes of live tensors")
    arguments = parser.parse_args()
    fields = json.loads(arguments.job.read_text(encoding="utf-8"))
    job = Job(**{**fields, "settings": tuple(fields.get("settings", ()))})
    others = {LLAMAFACTORY: run_llamafactory, LITGPT: run_litgpt, TORCHTUNE: run_torchtune}
    run = ({FTKIT: run_ftkit} | others).get(arguments.name.split(":")[0], run_trainer)
    counter = LiveBytes() if arguments.count else None
    max_steps = 2 if arguments.count else None
    with counter or nullcontext():
        train_seconds, score = run(arguments.name, job, arguments.folder, max_steps)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    counted = None if counter is None else counter.peak
    waited = int(SCHEDULE.read_text(encoding="utf-8").split()[1]) / 1e9
    used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    worked = sum(one.ru_utime + one.ru_stime for one in used)
    result = Result(time.time() - started, train_seconds, score, resident, counted, versions(), waited, worked)
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
