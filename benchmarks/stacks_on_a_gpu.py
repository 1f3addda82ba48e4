"""Measure on this GPU what transformers' Trainer holds, for the runs of our own on the page of published peaks.

    python -m benchmarks.stacks_on_a_gpu [ROW ...] [--rows benchmarks/own_rows.jsonl] [--out FILE] [--models FOLDER]

A row says what is run. Each is trained for three steps by a process of its own, on a model of its sizes with random
weights and on random ids, and is written to FILE with the card, the versions and the bytes that were found. torchtune's
rows are not run here: they were its released recipes, whose weights were left as they are made, on packs of random ids.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import Row, arch_of, rank_of, read_rows
from benchmarks.stacks import hf

FRAMEWORK = "HF Trainer"
"""What the rows that are run here say of their library at first."""
STEPS = 3
"""The second has moments from its beginning, the third is as the second."""


class Ids(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random ids of one length, which are their own labels, without a mask.

    Args:
        row: says how long they are, and how many make a micro-batch.
        words: the model's.
    """

    def __init__(self, row: Row, words: int) -> None:
        """Draw them."""
        shape = row["micro_batch"] * (STEPS + 1), row["seq_len"]
        self.ids = torch.randint(words, shape, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one sequence."""
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def model_in(folder: Path, row: Row) -> Path:
    """Return the folder of a row's model, which is made where it is not there yet: random weights in bf16."""
    import transformers

    path = folder / re.sub(r"\W+", "-", f"{row['model_id']} {arch_of(row)['layers']}")
    if not (path / "config.json").exists():
        made = transformers.AutoModelForCausalLM.from_config(hf.architecture(row), dtype=torch.bfloat16)
        made.save_pretrained(path)
    return path


def load(row: Row, path: Path) -> Any:
    """Return a row's model as a user would load it, quantized where the row says so, with its adapters."""
    import peft
    import transformers

    checkpoints = {"gradient_checkpointing_kwargs": {"use_reentrant": False}}
    options: dict[str, Any] = {"dtype": hf.type_in(row["base_dtype"]), "attn_implementation": row["attn_impl"]}
    if row["quant"]:
        options["device_map"] = {"": 0 if torch.cuda.is_available() else "cpu"}
        options["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant="double" in row["quant"],
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, **options)
    model.config.use_cache = False
    if row["quant"]:
        is_checkpointed = bool(row["grad_checkpointing"])
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=is_checkpointed, **checkpoints)
    if row["lora_r"] is None:
        return model
    if row["grad_checkpointing"] and not row["quant"]:
        model.enable_input_require_grads()
    rank = rank_of(row)
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, task_type="CAUSAL_LM", target_modules=hf.adapted(row, model))
    return peft.get_peft_model(model, config)


def train(row: Row, folder: Path) -> dict[str, Any]:
    """Train three steps of a row.

    Args:
        row: of the Trainer.
        folder: for its model, which is made there.

    Returns:
        The fields of the row that were found: peaks of load and training in bytes, the card, the versions, the day.
    """
    import transformers

    path = model_in(folder, row)
    has_card = torch.cuda.is_available()
    if has_card:  # a model that was made just now was made in the host's memory
        torch.cuda.reset_peak_memory_stats()
    model = load(row, path)
    with tempfile.TemporaryDirectory() as out:
        settings = transformers.TrainingArguments(
            out,
            per_device_train_batch_size=row["micro_batch"],
            max_steps=STEPS,
            learning_rate=1e-4,
            optim=row["optimizer"],
            bf16=True,
            gradient_checkpointing=bool(row["grad_checkpointing"]),
            gradient_checkpointing_kwargs={"use_reentrant": False} if row["grad_checkpointing"] else None,
            use_liger_kernel="liger" in (row["fused_kernels"] or "").lower(),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=not has_card,
            remove_unused_columns=False,
        )
        data = Ids(row, model.config.vocab_size)
        transformers.Trainer(model=model, args=settings, train_dataset=data).train()
    packages = re.findall(r"([\w-]+) \d", row.get("framework_version") or "")
    return {
        "gpu": torch.cuda.get_device_name() if has_card else None,
        "framework_version": ", ".join(f"{name} {metadata.version(name).partition('+')[0]}" for name in packages),
        "date": datetime.now(UTC).date().isoformat(),
        "value_bytes": torch.cuda.max_memory_allocated() if has_card else None,
        "extra_metrics": {"reserved_peak_bytes": torch.cuda.max_memory_reserved() if has_card else None},
    }


def main() -> int:
    """Run each row in a process of its own; return how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="ROW", help="none: all of the Trainer")
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_name("own_rows.jsonl"))
    parser.add_argument("--out", type=Path, default=Path("own_rows.jsonl"), help="is appended to")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "ftkit-stacks")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = [row for row in read_rows([arguments.rows]) if row["framework"].startswith(FRAMEWORK)]
    chosen = [row for row in rows if not arguments.ids or row["id"] in arguments.ids]
    if arguments.child:
        with arguments.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row | train(row, arguments.models)) + "\n" for row in chosen)
        return 0
    options = [f"--{name}={getattr(arguments, name)}" for name in ("rows", "out", "models")]
    program = [sys.executable, "-m", "benchmarks.stacks_on_a_gpu", "--child", *options]
    return sum(subprocess.run([*program, row["id"]], check=False).returncode != 0 for row in chosen)


if __name__ == "__main__":
    raise SystemExit(main())
