"""Tiny models, tiny texts, and one way to take a few steps with them; nothing here asserts anything."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ftkit.config import files as config_io
from ftkit.data import batching
from ftkit.data.arrays import Labels, PreparedData, TokenSplit
from ftkit.engine.assemble import assemble, build_engine
from ftkit.engine.resolve import DTYPES, Devices, ResolvedRun, resolve
from ftkit.models import build as ftkit_model
from ftkit.models.objective import objective_of
from ftkit.models.sources import source as ftkit_source
from ftkit.step.step import train_step
from ftkit.training.trunk.once import Whole, compute_once
from tests import families

if TYPE_CHECKING:
    from pathlib import Path

    from ftkit.config.tree import RunConfig
    from ftkit.engine.protocol import Engine
    from ftkit.machine import process as distributed

# Those that every method and setting is tried on; tests/families.py has all that a cut is tried on.
FAMILIES = ("gpt2", "bert", "llama", "roberta")
WORDS = ("good", "bad", "film", "plot", "dull", "fine", "actor", "scene", "very", "not", "the", "a", "of", "and", "one")
VOCABULARY = 64
PADDING = batching.Padding(1)
LABELS = Labels("single", ("a", "b", "c"))
_SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}


def tiny_config(family: str) -> Any:
    """Return a configuration of two layers, without dropout, as equality needs; FAMILIES are a block of 4 bits wide."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 1}
    match family:
        case "gpt2":
            drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            ends = {"bos_token_id": 2, "eos_token_id": 2}
            return transformers.GPT2Config(n_embd=64, n_layer=2, n_head=2, n_positions=64, **common, **drop, **ends)
        case "bert":
            return transformers.BertConfig(**common, **_SHAPE, **no_dropout)
        case "roberta":
            return transformers.RobertaConfig(max_position_embeddings=80, **common, **_SHAPE, **no_dropout)
        case "llama":
            return transformers.LlamaConfig(num_key_value_heads=1, tie_word_embeddings=False, **common, **_SHAPE)
    return families.architecture(family)


def save_tiny_model(folder: Path, family: str) -> Path:
    """Save a random base model of a family, with a tokenizer of whole words; returns its folder."""
    torch.manual_seed(7)
    config = tiny_config(family)
    causal = family in ("gpt2", *families.DECODERS)
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    kind.from_config(config).save_pretrained(folder)
    words = {"[UNK]": 0, "[PAD]": 1, "[END]": 2, "[CLS]": 3, "[SEP]": 4}
    words |= {word: number for number, word in enumerate(WORDS, start=len(words))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special: dict[str, str] = {"unk_token": "[UNK]", "eos_token": "[END]"}
    if not causal:
        special |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
        )
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def ragged_split(
    task: str, num_samples: int = 24, longest: int = 30, seed: int = 0, kind: str = "single"
) -> TokenSplit:
    """Return random sequences of 2 to `longest` tokens with labels for a task, of a kind where it classifies."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, longest + 1, size=num_samples)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    tokens = random.integers(5, VOCABULARY, size=offsets[-1]).astype(np.int32)
    if task == "sequence-classification" and kind == "multi":
        return TokenSplit(tokens, offsets, random.integers(0, 2, size=(num_samples, 3)).astype(np.int8))
    if task == "sequence-classification" and kind == "regression":
        return TokenSplit(tokens, offsets, random.normal(2.0, 3.0, size=num_samples))
    if task == "sequence-classification":
        return TokenSplit(tokens, offsets, random.integers(0, 3, size=num_samples))
    targets = random.random(offsets[-1]) < 0.7
    targets[offsets[:-1]] = False
    targets[offsets[:-1] + 1] = True
    return TokenSplit(tokens, offsets, targets)


class Notes:
    """A reporter that remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


@dataclass(frozen=True)
class Outcome:
    """What a few steps gave."""

    losses: list[float]
    norms: list[float]
    engine: Engine


def build_cached(
    settings: list[str],
    model: Path,
    process: distributed.ProcessContext,
    split: TokenSplit,
    padding: batching.Padding = PADDING,
) -> tuple[RunConfig, Engine, TokenSplit]:
    """Build as `build` does in fp32, with the trunk computed once; returns the split with its hidden states too."""
    config = config_io.load_config(settings=[f"model.name={model}", *settings, "cache.trunk=on"])
    source = ftkit_source.resolve_source(config.model, config.task)
    labels = LABELS.names if config.task == "sequence-classification" else None
    architecture = ftkit_source.load_config(source, labels, 1, "single")
    run = resolved(config, process, torch.float32)
    whole = Whole(
        ftkit_model.build_model(run.config, source, architecture, run.dtype), process.device, run.dtype, process
    )
    computed = compute_once(run, whole, prepared(split, config.task), padding, lambda _: None)
    assert computed is not None
    return (
        run.config,
        build_engine(run, whole.model, process, objective_of(run.config, architecture, whole.model)),
        computed.data.train,
    )


def prepared(split: TokenSplit, task: Any) -> PreparedData:
    """Return the data of a run that has a training split alone."""
    return PreparedData(task, split, None, None, LABELS, "", cast(Any, None))


def build(
    settings: list[str], model: Path, dtype: torch.dtype, process: distributed.ProcessContext
) -> tuple[RunConfig, Engine]:
    """Build the engine of a configuration over a saved tiny model with three classes or labels, or one number."""
    config = config_io.load_config(settings=[f"model.name={model}", *settings])
    source = ftkit_source.resolve_source(config.model, config.task)
    kind = "single" if config.data.label_kind == "auto" else config.data.label_kind
    names = LABELS.names[: 1 if kind == "regression" else 3]
    labels = names if config.task == "sequence-classification" else None
    architecture = ftkit_source.load_config(source, labels, 1, kind)
    run = resolved(config, process, dtype)
    return run.config, assemble(run, source, architecture, process).engine


def resolved(config: RunConfig, process: distributed.ProcessContext, dtype: torch.dtype) -> ResolvedRun:
    """Return a run in a precision that a user could not ask of this machine, such as fp16 on a CPU."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    return replace(resolve(config, Devices.of(process)), precision=names[dtype])


def take_steps(
    config: RunConfig,
    engine: Engine,
    split: TokenSplit,
    num_steps: int = 3,
    rate: float = 0.002,
    padding: batching.Padding = PADDING,
) -> Outcome:
    """Take optimizer steps over global batches of a split."""
    ftkit_model.set_training(engine.model, True)
    losses, norms = [], []
    for batch in batching.global_batches(split.num_texts, config.batch.global_batch_size, 0, num_steps):
        rows = split.rows_of(batch.indices)
        share = batching.cut(split.lengths[rows], config.batch, engine.process.world_size)[engine.process.rank]
        micro = [batching.collate(split, rows[places], padding, engine.device) for places in share]
        num_targets = engine.objective.target_weights(split)[batch.indices].sum()
        result = train_step(engine, micro, float(num_targets), rate)
        losses.append(float(result.loss))
        norms.append(float(result.grad_norm))
        assert math.isfinite(losses[-1])
    return Outcome(losses, norms, engine)


def logits_of(model: Any, split: TokenSplit, rows: int = 4) -> torch.Tensor:
    """Return the logits of the first sequences, padded, in evaluation mode; [B, C] or [B, T, V]."""
    device = next(model.parameters()).device
    micro = batching.collate(split, np.arange(rows), PADDING, device)
    model.eval()
    with torch.no_grad():
        return cast(torch.Tensor, model(**micro.inputs()).logits.float().cpu())
