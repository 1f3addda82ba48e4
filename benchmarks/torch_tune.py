"""torchtune as a contestant: the recipe `lora_finetune_single_device`, over the same blocks of tokens.

It is run by an interpreter of its own, since it needs an older torchao. It has no SmolLM2, which is a Llama 3.2 by its
parts, of other sizes and without a scale of its rotations. The loss of the recipe goes through the vocabulary in chunks
of the tokens, as is its default. The recipe validates nothing, so there is no score.
"""

import json
import runpy
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.job import ALPHA, DROPOUT, RANK, Job, token_ids

HERE = "benchmarks.torch_tune"


class Tokenizer:
    """The one thing that the recipe asks of a tokenizer whose texts are numbers already."""

    pad_id = 0


def make_tokenizer() -> Tokenizer:
    """Return the tokenizer, as the recipe's configuration names it."""
    return Tokenizer()


def make_blocks(tokenizer: Tokenizer, job: dict[str, Any]) -> list[dict[str, list[int]]]:  # noqa: ARG001  # its order
    """Return the whole blocks of the training split, as the recipe's configuration names them."""
    import transformers

    work = Job(**job)
    ids = token_ids(work, "train", transformers.AutoTokenizer.from_pretrained(work.model))["input_ids"]
    return [{"tokens": block, "labels": block} for block in ids]


def make_model(config: dict[str, Any], **adapters: Any) -> Any:
    """Return the model with adapters, as the recipe's configuration names it.

    Args:
        config: of the model, as transformers saves it.
        adapters: what the recipe wants to read of them in its configuration too.
    """
    llama = import_module("torchtune.models.llama3_2._component_builders")
    return llama.lora_llama3_2(
        **adapters,
        vocab_size=config["vocab_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        embed_dim=config["hidden_size"],
        intermediate_dim=config["intermediate_size"],
        max_seq_len=config["max_position_embeddings"],
        norm_eps=config["rms_norm_eps"],
        rope_base=int(config.get("rope_theta") or config["rope_parameters"]["rope_theta"]),
        scale_factor=1,
    )


def run_torchtune(name: str, job: Job, folder: Path, max_steps: int | None) -> tuple[float, None]:  # noqa: ARG001  # one form
    """Model language; return seconds of training, and no score.

    Args:
        name: `torchtune`.
        job: a causal-lm with LoRA.
        folder: for what it writes.
        max_steps: after which it stops; None: after its epochs.
    """
    assert (job.task, job.method) == ("causal-lm", "lora")
    omegaconf, torchtune = import_module("omegaconf"), import_module("torchtune")
    recipes = Path(str(torchtune.__file__)).parents[1] / "recipes"  # which lets nobody import it
    recipe_class = runpy.run_path(str(recipes / "lora_finetune_single_device.py"))["LoRAFinetuneRecipeSingleDevice"]
    config = json.loads((Path(job.model) / "config.json").read_text(encoding="utf-8"))
    settings = {
        "output_dir": str(folder),
        "device": "cpu",
        "dtype": "fp32",
        "seed": job.seed,
        "epochs": int(job.epochs),
        "max_steps_per_epoch": max_steps,
        "batch_size": job.micro_batch_size,
        "gradient_accumulation_steps": job.global_batch_size // job.micro_batch_size,
        "clip_grad_norm": 1.0,
        "compile": False,
        "shuffle": True,
        "resume_from_checkpoint": False,
        "save_adapter_weights_only": True,
        "tokenizer": {"_component_": f"{HERE}.make_tokenizer"},
        "dataset": {"_component_": f"{HERE}.make_blocks", "job": asdict(job)},
        "model": {
            "_component_": f"{HERE}.make_model",
            "config": config,
            "lora_attn_modules": ["q_proj", "k_proj", "v_proj", "output_proj"],
            "apply_lora_to_mlp": True,
            "lora_rank": RANK,
            "lora_alpha": ALPHA,
            "lora_dropout": DROPOUT,
        },
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": job.model,
            "checkpoint_files": ["model.safetensors"],
            "model_type": "LLAMA3_2",
            "output_dir": str(folder / "model"),
        },
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": job.learning_rate, "weight_decay": 0.01, "fused": True},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 1,
        },
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "metric_logger": {"_component_": "torchtune.training.metric_logging.StdoutLogger"},
    }
    recipe = recipe_class(cfg=omegaconf.OmegaConf.create(settings))
    recipe.setup(cfg=omegaconf.OmegaConf.create(settings))
    began = time.perf_counter()
    recipe.train()
    return time.perf_counter() - began, None
