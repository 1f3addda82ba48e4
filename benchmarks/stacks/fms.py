"""fms-acceleration's benchmarks: transformers' Trainer, TRL and PEFT on packed sequences of 4096 tokens.

Source: foundation-model-stack/fms-acceleration, scripts/benchmarks (scenarios.yaml, refs/requirements.txt).
"""

import torch
from torch import nn

from benchmarks.stacks import Row, hf, traced
from ftkit.plan.tape import Tape

GROUPS = ("fms-acceleration/",)
REQUIREMENTS = (
    "transformers==4.48.1",
    "peft==0.13.2",
    "bitsandbytes==0.43.3",
    "accelerate==0.34.2",
    "tokenizers==0.21.0",
    "huggingface_hub==0.27.1",
)


def reason_not_traced(row: Row) -> str | None:
    """Return why a row cannot be reproduced, or None."""
    if row["n_gpus"] > 1:
        return f"its sharding is not traced ({row['parallel']})"
    return "its 4-bit layers are not traced" if row["quant"] else None


def trace_row(row: Row) -> Tape:
    """Trace two steps."""
    model = hf.build(row, torch.bfloat16, "sdpa")
    hf.flash_attention()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": row["lora_r"] is None})
    if row["method"] == "lora":
        model = adapt(row, model)
    with traced.recording() as recorder:
        traced.fake(model)
        traced.see(recorder, model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)

        def loss_of() -> torch.Tensor:
            ids = traced.token_ids(recorder, row)
            loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
            return loss

        def update() -> None:
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

        traced.two_steps(recorder, loss_of, update)
    return recorder.tape


def adapt(row: Row, model: nn.Module) -> nn.Module:
    """Add a row's adapters, in fp32 as PEFT makes them."""
    import peft

    config = peft.LoraConfig(r=row["lora_r"], lora_alpha=16, lora_dropout=0.1, target_modules=hf.targets(row, model))
    adapted = peft.get_peft_model(model, config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
