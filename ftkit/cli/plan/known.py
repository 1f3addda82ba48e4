"""The cards and the models that are known by name: the tables of the planner as lines of text."""

from ftkit.machine.hardware import gpus
from ftkit.models.sources.known import hub_name, positions_read, shapes, table_names
from ftkit.units import format_bytes

_POSITIONS = ("max_position_embeddings", "n_positions")


def known_lines() -> list[str]:
    """Return the cards with their memory and rates, and the models with their names on the hub, as lines of text."""
    cards = sorted(gpus().items(), key=lambda card: (card[1].vendor, card[1].memory_bytes, card[1].half_flops))
    head = f"{'--gpu':20} {'memory':>11} {'GB/s':>6} {'fp16 TFLOP/s':>13}"
    lines = [
        f"{short:20} {format_bytes(gpu.memory_bytes):>11} {gpu.bandwidth / 1e9:6.0f} {gpu.half_flops / 1e12:13.1f}"
        for short, gpu in cards
    ]
    models = [f"{name:20} {_positions(name):>11}  {hub_name(name)}" for name in table_names()]
    return [
        head,
        *lines,
        "Several cards: --gpu 2x3090. Another card: --memory-budget 12GiB. This machine's processor: --gpu cpu.",
        "",
        f"{'--model':20} {'tokens':>11}  on the hub",
        *models,
        "Instruct variants and copies in 4 bits (-bnb-4bit) have the shapes of their base. Another model: a folder "
        "with config.json, or its name on the hub.",
    ]


def _positions(name: str) -> str:
    fields = shapes(name)
    known = next(fields[key] for key in _POSITIONS if key in fields)
    return f"{positions_read(fields['model_type'], known):,}"
