"""LLaMA-Factory as a contestant: it trains by HF Trainer, with settings and data handling of its own.

It is run by an interpreter of its own, since it pins older versions of transformers and peft. This file may not have
the name of that package, which a program that stands beside it would then not find. Its loss is what its own `evaluate`
says, which leaves the last short block out: not the score of the other contestants.
"""

import json
from importlib import import_module
from pathlib import Path

from benchmarks.job import ALPHA, DROPOUT, RANK, Job


def run_llamafactory(name: str, job: Job, folder: Path, max_steps: int | None) -> tuple[float, float]:
    """Model language; return seconds of training and the loss.

    Args:
        name: `llamafactory`, which recomputes activations as is its default, or `llamafactory:kept`, which keeps them.
        job: a causal-lm with LoRA.
        folder: for what it writes.
        max_steps: after which it stops; None: after its epochs.
    """
    assert (job.task, job.method) == ("causal-lm", "lora")
    rows = {
        split: {"file_name": str(Path(job.data) / f"{split}.jsonl"), "columns": {"prompt": "text"}}
        for split in ("train", "test")
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_info.json").write_text(json.dumps(rows), encoding="utf-8")
    tuner = import_module("llamafactory.train.tuner")  # which is not installed beside ftkit
    tuner.run_exp(
        {
            "stage": "pt",
            "do_train": True,
            "do_eval": True,
            "model_name_or_path": job.model,
            "finetuning_type": "lora",
            "lora_target": "all",
            "lora_rank": RANK,
            "lora_alpha": ALPHA,
            "lora_dropout": DROPOUT,
            "disable_gradient_checkpointing": name.endswith(":kept"),
            "dataset_dir": str(folder),
            "dataset": "train",
            "eval_dataset": "test",
            "cutoff_len": job.max_length,
            "packing": True,  # texts are joined and cut into blocks; the last, which is shorter, is dropped
            "output_dir": str(folder / "model"),
            "overwrite_output_dir": True,
            "per_device_train_batch_size": job.micro_batch_size,
            "gradient_accumulation_steps": job.global_batch_size // job.micro_batch_size,
            "per_device_eval_batch_size": job.micro_batch_size,
            "num_train_epochs": job.epochs,
            "max_steps": max_steps or -1,
            "learning_rate": job.learning_rate,
            "warmup_steps": 0.06,
            "weight_decay": 0.01,
            "seed": job.seed,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
    )
    results = json.loads((folder / "model" / "all_results.json").read_text(encoding="utf-8"))
    return float(results["train_runtime"]), float(results["eval_loss"])
