"""The contents of one file, and the files that make up a split."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.units import counted


@dataclass(frozen=True)
class Shard:
    """The rows of one file, or of one table that `datasets` gave.

    Attributes:
        name: the file, as messages and the report call it.
        table: N rows; values that Arrow would have to alter, such as objects, are JSON text of the type `pa.JsonType`.
        classes: column to the names of its classes in the order of their numbers, as the file stores them; the column
            itself holds names already, since another file may number the same classes in another order.
        unit: what `places` counts: a `line` of a text file, a `row` of a table.
        places: int64 [N], where each row begins; None counts from 1.
        notes: what the reader found worth telling, such as the separator.
        files: the file of each row, where `name` is a folder whose files are the rows, else empty.
    """

    name: str
    table: pa.Table
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unit: str = "row"
    places: NDArray[np.int64] | None = None
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def where(self, row: int) -> str:
        """Return the words for the place of a row, counted from 0."""
        return f"{self.name}, {self.unit} {self.numbers[row]}"

    def summary(self, name: str) -> str:
        """Return what the report tells of the file, under a shorter name."""
        count = counted(self.table.num_rows, "file" if self.files else "row")
        return f"{name} ({'; '.join((count, *self.notes))})"

    @property
    def sources(self) -> dict[str, int]:
        """The words that come before the number of a row's place, to how many rows have them, in order."""
        return {f"{file}, line": 1 for file in self.files} or {f"{self.name}, {self.unit}": self.table.num_rows}

    @property
    def numbers(self) -> NDArray[np.int64]:
        """The place of every row, int64 [N]."""
        if self.files:
            return np.ones(self.table.num_rows, dtype=np.int64)
        return np.arange(1, self.table.num_rows + 1) if self.places is None else self.places


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order.

    Attributes:
        name: the split as the dataset calls it.
        shards: one at least.
    """

    name: str
    shards: tuple[Shard, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.table.num_rows for shard in self.shards)

    @property
    def column_names(self) -> list[str]:
        """Every column that a shard has, in order of appearance."""
        return list(dict.fromkeys(name for shard in self.shards for name in shard.table.column_names))

    def classes(self, column: str) -> tuple[str, ...] | None:
        """Return the names of a column's classes in the order of the first shard that stores one, or None."""
        stored = [shard.classes[column] for shard in self.shards if column in shard.classes]
        return tuple(dict.fromkeys(name for names in stored for name in names)) if stored else None
