"""The texts behind the sequences of a split, for whoever looks at a single answer."""

from dataclasses import dataclass

import pyarrow as pa

from ftkit.data.table.rows import iterate, keys, where

_PARTS = ("first", "second")


@dataclass(frozen=True)
class Examples:
    """The rows that sequences were made of, in their order.

    Attributes:
        rows: a table that `select_rows` gave, N rows; a pair has two texts.
    """

    rows: pa.Table

    def __len__(self) -> int:
        """Return N."""
        return int(self.rows.num_rows)

    def hashes(self) -> tuple[str, ...]:
        """Return 16 hexadecimal digits for each row: equal texts, equal digits, in every run and every file."""
        return tuple(f"{key:016x}" for key in keys(self.rows).tolist())

    def texts(self, place: int) -> tuple[str, ...]:
        """Return the text, or the two texts, of the row at a place."""
        return next(iterate(self.rows.slice(place, 1), *_PARTS))

    def joined(self, place: int) -> str:
        """Return the text of the row at a place; of a pair both, one below the other."""
        return "\n".join(str(part) for part in self.texts(place))

    def where(self, place: int) -> str:
        """Return where the row at a place came from, such as `reviews.csv line 12`."""
        return where(self.rows, place)
