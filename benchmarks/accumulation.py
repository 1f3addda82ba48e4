"""The gradient of one global batch: cut into micro-batches by ftkit and by HF Trainer, against the uncut batch.

    python benchmarks/accumulation.py runs/accumulation

MiniLM classifies 128 movie reviews, without dropout, in fp32, all of its weights trained. The uncut gradient is that of
the mean loss over the 128 reviews, computed by torch in one forward. Beside it stand the gradients that each program
is about to clip and apply: ftkit's, cut at 512 tokens and at 16 sequences a micro-batch, and HF Trainer's of 8
micro-batches of 16 under each of its ways to sample. A gradient has a length and a direction: the table has the length
as a multiple of the uncut one's, and the sine of the angle between the two, which is 0 where they point the same way.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.beside import MINILM, SAMPLINGS, write_reviews

NUM_TEXTS, MICRO_BATCH, LENGTH = 128, 16, 128
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
Gradient = dict[str, torch.Tensor]


def make_model(numbers: dict[str, int]) -> Any:
    """Return MiniLM with a new head, the same one at each call."""
    import transformers

    torch.manual_seed(0)
    folder = str(metadata.distribution(MINILM[0]).locate_file(MINILM[1]))
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=len(numbers), **NO_DROPOUT
    )


def gradients(model: Any) -> Gradient:
    """Return copies of the gradients that a model holds, by name."""
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def uncut(texts: list[str], labels: list[int], tokenizer: Any, model: Any) -> Gradient:
    """Return the gradient of the mean loss in one forward."""
    inputs = tokenizer(texts, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")
    torch.nn.functional.cross_entropy(model(**inputs).logits, torch.tensor(labels)).backward()
    return gradients(model)


def of_ftkit(texts: list[str], labels: list[int], tokenizer: Any, model: Any, settings: dict[str, int]) -> Gradient:
    """Return what ftkit's engine is about to apply."""
    import numpy as np

    from ftkit.config.tree import RunConfig
    from ftkit.data.arrays import TokenSplit
    from ftkit.data.batching import Padding, collate, cut
    from ftkit.engine.plain import PlainEngine
    from ftkit.machine.process import ProcessContext
    from ftkit.models.build import prepare_model
    from ftkit.models.objective import objective_of
    from ftkit.models.sources.start import Start
    from ftkit.models.structure.heads import find_head

    batch = {"global_batch_size": NUM_TEXTS, **settings}
    config = RunConfig.model_validate({"method": {"name": "full"}, "batch": batch})
    prepared = prepare_model(config, model, torch.float32, Start(head=find_head(model, ()), rows=range(0)))
    objective = objective_of(config, model.config, prepared)
    engine = PlainEngine(config, prepared, ProcessContext(), torch.float32, objective)
    ids = [np.array(row, dtype=np.int32) for row in tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in ids])))
    split = TokenSplit(np.concatenate(ids), offsets, np.array(labels))
    (pieces,) = cut(split.lengths, config.batch, 1)
    for piece in pieces:
        micro_batch = collate(split, piece, Padding(tokenizer.pad_token_id), torch.device("cpu"))
        engine.backward(engine.loss(micro_batch) / NUM_TEXTS)
    return gradients(prepared)


def of_trainer(
    texts: list[str], labels: list[int], tokenizer: Any, model: Any, sampling: str, folder: Path
) -> Gradient:
    """Return what HF Trainer is about to apply."""
    import transformers
    from datasets import Dataset

    kept: Gradient = {}

    class Look(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002  # its signature
            kept.update(gradients(given["model"]))

    ids = tokenizer(texts, truncation=True, max_length=LENGTH)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=NUM_TEXTS // MICRO_BATCH,
        train_sampling_strategy=sampling,
        max_steps=1,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({**ids, "labels": labels}),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[Look()],
    )
    trainer.train()
    return kept


def beside(gradient: Gradient, reference: Gradient) -> tuple[float, float]:
    """Return the length of a gradient by that of another, and the sine of the angle between them."""
    ours, theirs = (torch.cat([one[name].flatten().double() for name in reference]) for one in (gradient, reference))
    cosine = float(ours @ theirs / (ours.norm() * theirs.norm()))
    return float(ours.norm() / theirs.norm()), max(0.0, 1 - cosine**2) ** 0.5


def main() -> None:
    """Print the table."""
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the texts")
    out = parser.parse_args().out
    write_reviews(out, NUM_TEXTS, 0)
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = {label: number for number, label in enumerate(sorted({row["label"] for row in rows}))}
    texts, labels = [row["text"] for row in rows], [numbers[row["label"]] for row in rows]
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(metadata.distribution(MINILM[0]).locate_file(MINILM[1])))
    reference = uncut(texts, labels, tokenizer, make_model(numbers))
    print("| gradient of 128 texts | length, by the uncut one's | sine of the angle to it |\n|---|---:|---:|")
    for name, settings in (("512 tokens", {"micro_batch_tokens": 512}), ("16 x 8", {"micro_batch_size": MICRO_BATCH})):
        length, angle = beside(of_ftkit(texts, labels, tokenizer, make_model(numbers), settings), reference)
        print(f"| ftkit, {name} | {length:.4f} | {angle:.1e} |", flush=True)
    for sampling in SAMPLINGS:
        theirs = of_trainer(texts, labels, tokenizer, make_model(numbers), sampling, out / "trainer")
        length, angle = beside(theirs, reference)
        print(f"| HF Trainer, 16 x 8, {sampling} | {length:.4f} | {angle:.1e} |", flush=True)


if __name__ == "__main__":
    main()
