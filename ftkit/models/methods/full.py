"""Full fine-tuning: every weight trains, and the result is a whole model."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ftkit.config.methods import MethodSection
from ftkit.models.card import Card
from ftkit.models.saved import save_whole

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.models.start import Start


class Full(MethodSection):
    """Train every weight."""

    name: Literal["full"] = "full"
    label: ClassVar[str] = "full"
    default_learning_rate: ClassVar[float] = 5e-5
    trains_all: ClassVar[bool] = True

    def prepare(self, model: "nn.Module", start: "Start", dtype: "torch.dtype") -> "nn.Module":  # noqa: ARG002  # as any method
        """Let every weight train."""
        return model.requires_grad_(True)

    def save(self, model: "nn.Module", folder: Path, weights: "dict[str, torch.Tensor]") -> None:
        """Write all weights."""
        save_whole(model, folder, weights)

    def loading_code(self, card: Card) -> list[str]:
        """Return a program for transformers."""
        return card.program("transformers", "AutoModelFor")
