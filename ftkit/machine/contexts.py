"""The memory of a card that one process takes before any tensor: driver, kernels and stacks, as far as published.

A context grows with the number of processors on a card, which each need stacks, with the release of CUDA, and while
kernels are loaded, lazily since CUDA 11.7 (before that a process took more than 1000 MB: pytorch issue 107667). Figures
of processes that had trained are ends of their own; those of a process that had computed nothing yet are low ends.
"""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Context:
    """The least and the most that a process takes.

    Attributes:
        low_bytes: the better end.
        high_bytes: the worse end, which a plan counts.
        source: where the two are from.
    """

    low_bytes: int
    high_bytes: int
    source: str


LEAST_BYTES = 147_718_144
"""The smallest that is published of any card: what 77 trainings on a T4 show beside torch's allocator, under torch 2.10
with CUDA 12.8 and torch 2.14 with CUDA 13.0 (Anassbzdd/fitcheck, data/measurements, cuda_context_bytes)."""
OLDER_BYTES = 400 * 10**6
""" "Around 400MB" with lazy loading (a maintainer, pytorch issue 109888, 2023): the high end before Ada."""
MOST_BYTES = 520 * MIB
"""The largest that is published of a process that had computed nothing (ai2cm/ace, pull request 1396, 2026; the card is
not named): the high end from Ada on, where one card alone is known."""
_ADA = (8, 9)

_OF_CARDS = {
    "T4": Context(LEAST_BYTES, LEAST_BYTES, "77 trainings on a T4"),
    "RTX 3090": Context(256 * MIB, OLDER_BYTES, "an idle process on an RTX 3090, torch 2.7 with CUDA 12.8"),
    **dict.fromkeys(
        ("H100", "H200"),
        Context(610 * MIB, 828 * MIB, "an idle process and eight trainings on an H200, torch 2.11 with CUDA 13.0"),
    ),
    "RTX 6000 Ada": Context(426 * MIB, MOST_BYTES, "an idle process on an RTX 6000 Ada, torch 2.10 with CUDA 13.0"),
}
"""Sources: fitcheck, as above; invoke-ai/InvokeAI issue 9413; measured by ftkit (docs/plan.md); unslothai/unsloth-zoo
pull request 1053."""


def context_of(name: str, capability: tuple[int, int], vendor: str) -> Context:
    """Return what a process takes of a card.

    Args:
        name: of the card, as the table of cards writes it.
        capability: of its architecture.
        vendor: `nvidia` or `amd`, of whose cards nothing is published.
    """
    if (known := _OF_CARDS.get(name)) is not None:
        return known
    if vendor == "nvidia" and capability >= _ADA:
        return Context(LEAST_BYTES, MOST_BYTES, "the range of all cards, since none of this card is published")
    return Context(LEAST_BYTES, OLDER_BYTES, "the range of cards before Ada, since none of this card is published")
