"""Feature extraction: the head alone trains over a frozen trunk, and the result is a whole model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from ftkit.config.methods import MethodSection
from ftkit.errors import ModelError
from ftkit.models.card import Card

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.models.saving.dtypes import Named
    from ftkit.models.sources.start import Start


class FeatureExtraction(MethodSection):
    """Train the head alone over a frozen trunk in evaluation mode."""

    name: Literal["feature-extraction"] = "feature-extraction"
    head: Literal["logistic"] | None = None
    """`logistic`: solve for the head at once, as logistic regression with the penalty that is best on validation, in
    the place of training it step by step."""

    label: ClassVar[str] = "feature extraction"
    flags: ClassVar[Mapping[str, str]] = {"--head": "head"}
    shown: ClassVar[Mapping[str, str]] = {"head": "head"}
    default_learning_rate: ClassVar[float] = 1e-2

    @property
    def fits_at_once(self) -> bool:
        """Return whether the head is solved for."""
        return self.head == "logistic"

    @property
    def leaves_trunk(self) -> bool:
        """Return whether anything is frozen below what trains: all layers are."""
        return True

    def prepare(self, model: "nn.Module", start: "Start", dtype: "torch.dtype") -> "nn.Module":  # noqa: ARG002  # as any method
        """Freeze all but the new head; without one, all but the layer that makes logits.

        Raises:
            ModelError: the model has no head, or its head is its table of embeddings.
        """
        from ftkit.models.structure.heads import output_names

        names = start.head or output_names(model)
        if start.rows:
            raise ModelError(
                "model.resize_embeddings adds rows that feature-extraction does not train; choose method lora or full"
            )
        if not names:
            raise ModelError(f"{type(model).__name__} has no head of its own to train; choose method lora")
        model.requires_grad_(False)
        for name in names:
            model.get_submodule(name).requires_grad_(True)
        if cast(Any, model).get_input_embeddings().weight.requires_grad:
            raise ModelError("the output layer of this model is its input embedding (tied weights); choose method lora")
        return model

    def save(self, model: "nn.Module", folder: Path, weights: "Named", dtype: "torch.dtype") -> None:
        """Write all weights, the frozen ones too."""
        from ftkit.models.saving.whole import save_whole

        save_whole(model, folder, weights, dtype)

    def loading_code(self, card: Card) -> list[str]:
        """Return a program for transformers."""
        return card.program("transformers", "AutoModelFor")
