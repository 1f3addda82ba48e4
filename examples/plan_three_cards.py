"""Which card is enough? Plan GPT-2 with three methods on three cards; needs no GPU, no weights and no network.

python examples/plan_three_cards.py
"""

import ftkit
from ftkit.units import format_bytes

CARDS = ("gtx1060-6gb", "t4", "rtx3090")

print(f"{'':20}" + "".join(f"{card:>24}" for card in CARDS))
for method in ("lora", "full"):
    config = ftkit.load_config(
        settings=["model.name=gpt2", f"method.name={method}", "data.max_length=512", "batch.micro_batch_size=16"]
    )
    cells = []
    for card in CARDS:
        plan = ftkit.plan(config, gpu=card)
        verdict = f"{plan.step_seconds:.2f} s" if plan.fits else "does not fit"
        cells.append(f"{format_bytes(plan.peak_process_bytes or 0)}, {verdict}")
    print(f"{method:20}" + "".join(f"{cell:>24}" for cell in cells))
