"""Full fine-tuning: every weight trains, or all of the topmost layers, and the result is a whole model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field

from ftkit.config.methods import MethodSection
from ftkit.errors import ModelError
from ftkit.models.card import Card

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.models.saving.dtypes import Named
    from ftkit.models.sources.start import Start


class Full(MethodSection):
    """Train every weight, or all of the topmost layers."""

    name: Literal["full"] = "full"
    top_layers: int | None = Field(default=None, ge=1)
    """The number of layers to train, from the top, with a new head; what is below stays as it is, and runs once
    (`cache.trunk`). All weights when not named."""

    label: ClassVar[str] = "full"
    flags: ClassVar[Mapping[str, str]] = {"--train-top-layers": "top_layers"}
    shown: ClassVar[Mapping[str, str]] = {"top_layers": "top"}
    default_learning_rate: ClassVar[float] = 5e-5
    trains_all: ClassVar[bool] = True
    cpu_micro_batch_tokens: ClassVar[int] = 1024
    """Each micro-batch makes a gradient of every weight, and adds it to what the others have made."""

    def prepare(self, model: "nn.Module", start: "Start", dtype: "torch.dtype") -> "nn.Module":  # noqa: ARG002  # as any method
        """Let every weight train, or those of the topmost layers and of a new head.

        Raises:
            ModelError: the model has fewer layers, or new rows that lie below them.
        """
        if self.top_layers is None:
            return model.requires_grad_(True)
        from ftkit.models.structure.layers import top_layers, transformer_layers

        if start.rows:
            raise ModelError(
                "model.resize_embeddings adds rows that the topmost layers alone do not train; leave out "
                "--train-top-layers"
            )
        numbers, found = top_layers(model, self.top_layers), transformer_layers(model)
        assert found is not None  # it has as many layers
        model.requires_grad_(False)
        for module in (*(found[1][number] for number in numbers), *map(model.get_submodule, start.head)):
            module.requires_grad_(True)
        return model

    @property
    def leaves_trunk(self) -> bool:
        """Return whether layers are frozen below those that train."""
        return self.top_layers is not None

    def adapts(self, layer: int, num_layers: int) -> bool:
        """Return whether a layer trains."""
        return self.top_layers is None or layer >= num_layers - self.top_layers

    def on_layers(self, kept: Sequence[int], num_layers: int) -> Self:
        """Count the layers that train among those that are kept."""
        if self.top_layers is None:
            return self
        return self.model_copy(update={"top_layers": sum(self.adapts(one, num_layers) for one in kept)})

    def save(self, model: "nn.Module", folder: Path, weights: "Named", dtype: "torch.dtype") -> None:
        """Write all weights."""
        from ftkit.models.saving.whole import save_whole

        save_whole(model, folder, weights, dtype)

    def loading_code(self, card: Card) -> list[str]:
        """Return a program for transformers."""
        return card.program("transformers", "AutoModelFor")
