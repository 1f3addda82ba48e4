"""The methods: one file each, holding all that sets it apart from the others.

A method is one class: a section of the configuration (`ftkit.config.methods.MethodSection`) that has the functions of
`Method` too. A new one is a file here and its name in the list below; from outside, `register` alone adds one. None of
these files imports torch at its top, since the command line asks them for their flags.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

from ftkit.config.methods import register
from ftkit.config.tree import RunConfig
from ftkit.models.methods.full import Full
from ftkit.models.methods.head import FeatureExtraction
from ftkit.models.methods.lora import Lora, Qlora

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftkit.models.card import Card
    from ftkit.models.saving.dtypes import Named
    from ftkit.models.sources.start import Start

for _section in (FeatureExtraction, Lora, Qlora, Full):
    register(_section)


class Method(Protocol):
    """All that the rest of ftkit asks of a method; `MethodSection` answers what is above `prepare`."""

    label: ClassVar[str]
    default_learning_rate: ClassVar[float]
    flags: ClassVar[Mapping[str, str]]
    shown: ClassVar[Mapping[str, str]]
    is_adapter: ClassVar[bool]
    trains_all: ClassVar[bool]

    @property
    def fits_at_once(self) -> bool: ...  # noqa: D102  # in MethodSection
    @property
    def leaves_trunk(self) -> bool: ...  # noqa: D102  # in MethodSection
    def stored_parameters(self, num_parameters: int, num_trainable_parameters: int) -> int: ...  # noqa: D102  # in MethodSection
    def adapts(self, layer: int, num_layers: int) -> bool: ...  # noqa: D102  # in MethodSection
    def on_layers(self, kept: Sequence[int], num_layers: int) -> Self: ...  # noqa: D102  # in MethodSection
    def cheaper(self) -> Sequence[dict[str, Any]]: ...  # noqa: D102  # in MethodSection

    def prepare(self, model: "nn.Module", start: "Start", dtype: "torch.dtype") -> "nn.Module":
        """Make of a model what trains: exactly that requires gradients afterwards.

        Args:
            model: a transformers model in evaluation mode, on the CPU or on `meta`; changed in place.
            start: what is new in it.
            dtype: what weights and activations compute in.

        Returns:
            The same module, or one around it.

        Raises:
            ModelError: the method does not fit the model.
        """

    def save(self, model: "nn.Module", folder: Path, weights: "Named", dtype: "torch.dtype") -> None:
        """Write the result as transformers or PEFT loads it.

        Args:
            model: what `prepare` returned; its own tensors may be partitioned.
            folder: where to; it is empty.
            weights: whole, with their names in the model, one after another, since a host may not hold all of them at
                once: those that train where `is_adapter`, else all. Numbers are rounded already.
            dtype: what they are rounded to.
        """

    def loading_code(self, card: "Card") -> list[str]:
        """Return the lines of a program that loads the result as it was scored."""


def method_of(config: RunConfig) -> Method:
    """Return what a run's method does: its section, since a registered section is a method."""
    return cast(Method, config.method)
