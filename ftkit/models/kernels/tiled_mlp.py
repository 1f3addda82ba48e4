"""The MLP of each layer over some tokens at a time, so that its wide hidden states never exist for a whole long text.

An MLP treats each token by itself. Its hidden states are three to four times as wide as the model, and a gated one
keeps several of them: at 32,768 tokens of Llama-3-8B in bf16 each is 896 MiB. In tiles only those of one tile exist:
the forward keeps a tile's input alone, and the backward computes the tile again (ALST, arXiv 2506.13996, section 3.1,
has the idea). The sums over tokens in the gradients of weights are taken tile by tile, which changes their rounding
alone.

Dimension letters: B batch, T token, N tokens of all sequences, D model.
"""

import inspect
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ftkit.errors import ModelError
from ftkit.models.structure.layers import transformer_layers

_NAMES = ("mlp", "ffn", "feed_forward")
"""As transformers' models call the MLP of a layer, where it is a module of its own."""


def tile_mlps(model: nn.Module, num_tokens: int) -> None:
    """Let the MLPs of a model run in tiles.

    Args:
        model: a transformers model; changed in place.
        num_tokens: of a tile.

    Raises:
        ModelError: no layer has an MLP that takes hidden states alone and is a module of its own.
    """
    found = transformer_layers(model)
    mlps = [mlp for layer in found[1] if (mlp := _mlp_of(layer)) is not None] if found else []
    if not found or len(mlps) < len(found[1]):
        raise ModelError(
            f"{type(model).__name__} has layers without an MLP that takes hidden states alone, such as a mixture of "
            "experts; leave model.mlp_tile_tokens out"
        )
    for mlp in mlps:
        mlp.forward = _tiled(mlp.forward, num_tokens)


def _mlp_of(layer: nn.Module) -> nn.Module | None:
    """Return a layer's MLP; None where it has none of its own, or one that chooses experts or wants more arguments."""
    mlp = next((one for name in _NAMES if isinstance(one := getattr(layer, name, None), nn.Module)), None)
    if mlp is None or any("expert" in name for name, _ in mlp.named_modules()):
        return None
    needed = [one for one in inspect.signature(mlp.forward).parameters.values() if one.default is one.empty]
    return mlp if len(needed) == 1 else None


def _tiled(whole: Callable[[torch.Tensor], torch.Tensor], num_tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(hidden_BTD: torch.Tensor) -> torch.Tensor:
        hidden_ND = hidden_BTD.flatten(0, -2)
        if len(hidden_ND) <= num_tokens:
            return whole(hidden_BTD)
        tiles = [checkpoint(whole, tile, use_reentrant=False) for tile in hidden_ND.split(num_tokens)]
        return torch.cat(tiles).view(*hidden_BTD.shape[:-1], -1)

    return forward
