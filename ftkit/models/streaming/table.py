"""The table of tokens of a streamed model: its rows are looked up on the host, and those of a micro-batch alone move.

The host needs the numbers of the tokens for that, so on a GPU it waits there until what was computed before is done.

Dimension letters: U rows that are wanted, D model.
"""

from functools import partial
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import nn

from ftkit.models.left_out import left_out
from ftkit.models.streaming.foreign import is_table, scaled
from ftkit.models.streaming.stored import StoredWeights


class TableSource(Protocol):
    """Gives rows of a table."""

    def look_up(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return the rows of tokens.

        Args:
            ids: int64, of any shape, on any device.
            weight: the stand-in for the table; the rows are of its type and on its device.

        Returns:
            [*ids.shape, D].
        """

    def values(self) -> dict[str, torch.Tensor]:
        """Return the whole table on the CPU, under an empty name."""


class NoTable:
    """Gives rows without values, for plans."""

    def look_up(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Return an empty tensor."""
        return weight.new_empty((*ids.shape, weight.shape[-1]))

    def values(self) -> dict[str, torch.Tensor]:
        """Return nothing."""
        return {}


class StoredTable:
    """Reads rows by position out of the safetensors that the model came in."""

    def __init__(self, stored: StoredWeights, name: str, dtype: torch.dtype) -> None:
        """Read from open files.

        Args:
            stored: the files.
            name: of the table in the model.
            dtype: that the run computes in.
        """
        self._stored, self._name, self._dtype = stored, name, dtype

    def look_up(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Read the rows of tokens, each once."""
        wanted, places = np.unique(ids.cpu().numpy(), return_inverse=True)
        rows_UD = self._stored.read_rows(self._name, wanted)
        rows = rows_UD[torch.from_numpy(places).reshape(ids.shape)]
        return rows.to(weight.dtype).to(weight.device)

    def values(self) -> dict[str, torch.Tensor]:
        """Read the table, as it is computed with: a trunk's address in the cache rests on it."""
        return {"": self._stored.read(self._name).to(self._dtype)}


class HostTable:
    """Looks rows up in the host's memory."""

    def __init__(self, table: torch.Tensor) -> None:
        """Take a table.

        Args:
            table: on the CPU, in the type that the run computes in.
        """
        self._table = table

    def look_up(self, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Copy the rows of tokens to the device."""
        return self._table[ids.cpu()].to(weight.device)

    def values(self) -> dict[str, torch.Tensor]:
        """Return the table."""
        return {"": self._table}


def table_to_stream(model: nn.Module, *, is_head: bool = False) -> str | None:
    """Return the name of the weight of a model's table of tokens, where it can leave; None where it stays.

    A table that several modules share stays, and so does one whose class does more than to look rows up and scale them.

    Args:
        model: a transformers model.
        is_head: whether the head leaves: a table that is the head too leaves with it, and stays otherwise.
    """
    table, head = cast(Any, model).get_input_embeddings(), cast(Any, model).get_output_embeddings()
    if not is_table(table) or table.max_norm is not None:
        return None
    names = [name for name, one in model.named_parameters(remove_duplicate=False) if one is table.weight]
    is_tied = is_head and head is not None and head.weight is table.weight
    return names[0] if len(names) == 1 + is_tied else None


def left_out_table(model: nn.Module) -> nn.Embedding | None:
    """Return the table of a model that was left out of it; None where it is there."""
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    return next((table for table in tables if left_out(table.weight) is not None), None)


def look_up_in(table: nn.Embedding, source: TableSource) -> None:
    """Let a table look rows up where they are.

    Args:
        table: that was left out.
        source: where its rows are.
    """
    vars(table)["forward"] = partial(_look_up, table, source)


def _look_up(table: nn.Embedding, source: TableSource, ids: torch.Tensor) -> torch.Tensor:
    return scaled(table, source.look_up(ids, table.weight))
