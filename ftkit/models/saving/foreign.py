"""Names of transformers that are not public, and that writing a whole model needs.

Each is a function that says in which version and file it was read; `tests/contracts/test_foreign.py` asks the installed
library for each, so that an upgrade names what has gone.
"""

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import nn


def not_saved(model: nn.Module) -> Collection[str]:
    """Return the names of weights that are not stored (transformers 5.23, modeling_utils.py)."""
    return cast(Any, model)._keys_to_ignore_on_save or ()


def as_in_files(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """Return tensors of a model as its files have them, under other names, joined or taken apart where they differ.

    `revert_weight_conversion` (transformers 5.23, core_model_loading.py), as `save_pretrained` calls it.

    Args:
        model: knows how its files differ from it.
        tensors: by their names in the model; those that one tensor of a file is made of have to be there together.
    """
    from transformers.core_model_loading import revert_weight_conversion

    reverted: Mapping[str, torch.Tensor] = revert_weight_conversion(cast(Any, model), dict(tensors))
    return reverted
