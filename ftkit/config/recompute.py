"""The shares of a model's layers that compute again in the backward what they do not keep in the forward."""

import math
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from ftkit.config.section import Section

Level = Literal["none", "cheap", "layer"]
LEVELS: tuple[Level, ...] = ("none", "cheap", "layer")
"""From the quickest to the one that keeps least."""
_NOISE = 1e-9
"""What sums and quotients of shares may miss: 0.416 / (1 - 0.584) is a little less than 1."""
OLD_SHARE = "model.gradient_checkpointing"
"""The old name of `model.recompute`: the share of the layers that recompute whole."""


class Recompute(Section):
    """How many layers recompute at which level; written as one word where all layers share one.

    `none` keeps all that the backward needs. `cheap` keeps matrix products and attention, and computes norms,
    activation functions, casts and dropout again. `layer` keeps the layer's input alone.
    """

    cheap: float = Field(default=0.0, ge=0.0, le=1.0)
    """The share of the layers that recompute what is cheap."""
    layer: float = Field(default=0.0, ge=0.0, le=1.0)
    """The share of the layers that recompute everything."""

    @model_validator(mode="before")
    @classmethod
    def _from_word(cls, value: Any) -> Any:
        if isinstance(value, dict | cls):
            return value
        if value not in LEVELS:
            raise ValueError("write none, cheap or layer, or shares of the layers such as {cheap: 0.5, layer: 0.5}")
        return {} if value == "none" else {value: 1.0}

    @model_validator(mode="after")
    def _at_most_all(self) -> "Recompute":
        if self.cheap + self.layer > 1 + _NOISE:
            raise ValueError(f"the shares cheap={self.cheap:g} and layer={self.layer:g} are more than all layers")
        return self

    @model_serializer
    def as_written(self) -> str | dict[str, float]:
        """Return one word where all layers share a level, else the shares that are not 0."""
        words: dict[tuple[float, float], str] = {(0.0, 0.0): "none", (1.0, 0.0): "cheap", (0.0, 1.0): "layer"}
        shares = {"cheap": self.cheap, "layer": self.layer}
        return words.get((self.cheap, self.layer)) or {name: share for name, share in shares.items() if share}

    def __str__(self) -> str:
        """Say it as YAML in one line, such as `cheap` or `{cheap: 0.5, layer: 0.5}`."""
        dumped = self.as_written()
        if isinstance(dumped, str):
            return dumped
        return f"{{{', '.join(f'{level}: {share:g}' for level, share in dumped.items())}}}"

    @property
    def saving(self) -> float:
        """How much less is kept, on a scale from 0 (all) to 2 (the layers' inputs alone)."""
        return self.cheap + 2 * self.layer

    def without_none(self) -> "Recompute":
        """Return it with all layers that would keep everything recomputing whole, as those do whose weights leave."""
        return Recompute(cheap=self.cheap, layer=1 - self.cheap)

    def levels(self, num_layers: int) -> list[Level]:
        """Return the level of each layer; those of each are spread evenly.

        Args:
            num_layers: of the model.
        """
        whole = _spread(num_layers, self.layer)
        rest = iter(_spread(whole.count(False), self.cheap / (1 - self.layer) if self.cheap else 0.0))
        return ["layer" if is_whole else "cheap" if next(rest) else "none" for is_whole in whole]


def with_share(values: Any) -> Any:
    """Read `gradient_checkpointing`, the share of the layers that recompute whole, as older files have it.

    Args:
        values: of the section of the model.

    Returns:
        The same with `recompute` in its place.

    Raises:
        ValueError: both are asked for.
    """
    if not isinstance(values, dict) or "gradient_checkpointing" not in values:
        return values
    rest = {key: value for key, value in values.items() if key != "gradient_checkpointing"}
    share = values["gradient_checkpointing"]
    if "recompute" not in rest:
        return rest | {"recompute": {"layer": share}}
    if share:
        raise ValueError("gradient_checkpointing is the old name of recompute: {layer: ...}; name recompute alone")
    return rest


def _spread(num_layers: int, share: float) -> list[bool]:
    """Return for each layer whether it is one of a share of them, evenly spread."""
    return [
        math.floor((number + 1) * share + _NOISE) > math.floor(number * share + _NOISE) for number in range(num_layers)
    ]
