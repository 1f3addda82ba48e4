"""HF Trainer takes the same steps on equal-length batches without accumulation."""

import numpy as np
import pytest
import torch
import transformers

from ftkit.data import batching
from ftkit.data.arrays import TokenSplit
from ftkit.machine.process import ProcessContext
from ftkit.models.build import set_training
from ftkit.step.step import train_step
from tests.helpers import PADDING, VOCABULARY, build, save_tiny_model

NUM_STEPS, BATCH, LENGTH = 5, 6, 12


def equal_length_split(task):
    random = np.random.default_rng(3)
    offsets = np.arange(NUM_STEPS * BATCH + 1, dtype=np.int64) * LENGTH
    tokens = random.integers(5, VOCABULARY, size=offsets[-1]).astype(np.int32)
    if task == "causal-lm":
        labels = np.ones(len(tokens), dtype=bool)
        labels[offsets[:-1]] = False
        return TokenSplit(tokens, offsets, labels)
    return TokenSplit(tokens, offsets, random.integers(0, 3, size=NUM_STEPS * BATCH))


@pytest.mark.parametrize(
    ("family", "task"),
    [("gpt2", "sequence-classification"), ("bert", "sequence-classification"), ("llama", "causal-lm")],
)
def test_losses_and_norms_are_those_of_the_hf_trainer_step_by_step(family, task, tmp_path):
    folder = save_tiny_model(tmp_path / "model", family)
    split = equal_length_split(task)
    settings = [f"task={task}", "method.name=full", f"batch.global_batch_size={BATCH}", "optimizer.weight_decay=0.01"]
    _config, engine = build(settings, folder, torch.float32, ProcessContext())
    start = {key: value.clone() for key, value in engine.model.state_dict().items()}
    set_training(engine.model, True)
    ours = []
    for step in range(NUM_STEPS):
        rows = np.arange(step * BATCH, (step + 1) * BATCH)
        micro = batching.collate(split, rows, PADDING, engine.device)
        result = train_step(engine, [micro], int(split.num_targets[rows].sum()), 1e-3 * (1 - step / NUM_STEPS))
        ours.append((float(result.loss), float(result.grad_norm)))
    np.testing.assert_allclose(ours, theirs(engine.model, start, split, task, tmp_path), rtol=1e-5)


def theirs(model, start, split, task, tmp_path):
    model.load_state_dict(start)
    rows = []
    for row in range(len(split)):
        ids = torch.as_tensor(split.tokens[row * LENGTH : (row + 1) * LENGTH], dtype=torch.int64)
        rows.append({"input_ids": ids, "labels": ids.clone() if task == "causal-lm" else int(split.labels[row])})
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"),
        per_device_train_batch_size=BATCH,
        max_steps=NUM_STEPS,
        learning_rate=1e-3,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_scheduler_type="linear",
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )

    class InOrder(transformers.Trainer):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(rows)

    trainer = InOrder(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return [(line["loss"], line["grad_norm"]) for line in trainer.state.log_history if "grad_norm" in line]
