"""Merged cells and hidden rows of a sheet, which its rows do not tell of."""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from ftkit.data.reading import foreign
from ftkit.units import counted

_MERGED = re.compile(rb"""<(?:\w+:)?mergeCell\s[^<>]*?ref=["']([A-Z]+\d+:[A-Z]+\d+)["']""")
_HIDDEN = re.compile(rb"""<(?:\w+:)?row(?=\s[^<>]*?\shidden=["'](?:1|true)["'])[^<>]*?\sr=["'](\d+)["'][^<>]*>""")
_PART, _LONGEST = 2**20, 2**10
"""Bytes that are looked through at once; more than one such element has."""


@dataclass
class SheetMarks:
    """What is marked in a sheet.

    Attributes:
        merged: row to the columns, from 0, whose cell is merged with those below, and the last row of each.
        hidden: the numbers of rows that Excel does not show.
        num_hidden: of them those that `fill` has seen, so that neither empty ones count nor the header.
        num_filled: cells that `fill` has filled.
    """

    merged: dict[int, list[tuple[int, int]]]
    hidden: set[int]
    num_hidden: int = 0
    num_filled: int = 0
    _held: dict[int, tuple[int, Any]] = field(default_factory=dict)

    def fill(self, number: int, filled: dict[int, Any]) -> None:
        """Give a row what merged cells say of it: the value stands in the first row of a merged cell alone.

        Args:
            number: of the row, from 1; rows come in order.
            filled: column, from 0, to value; gets those of merged cells that reach down to the row.
        """
        self.num_hidden += number in self.hidden
        for column, (last, value) in self._held.items():
            if number <= last and column not in filled:
                filled[column] = value
                self.num_filled += 1
        for column, last in self.merged.get(number, ()):
            if column in filled:
                self._held[column] = last, filled[column]

    def notes(self) -> list[str]:
        """Return what there is to tell."""
        own = (
            "cell has the value of the merged cell that it is",
            "cells have the value of the merged cell that they are",
        )
        filled = f"{counted(self.num_filled, *own)} part of"
        hidden = f"{counted(self.num_hidden, 'hidden row is', 'hidden rows are')} read too"
        return [*([filled] if self.num_filled else []), *([hidden] if self.num_hidden else [])]


def marks_of(sheet: Any) -> SheetMarks:
    """Return what is marked in a sheet.

    Args:
        sheet: openpyxl's, opened to be read only.
    """
    from openpyxl.utils.cell import range_boundaries

    ranges, hidden, rest = set[bytes](), set[bytes](), b""
    with foreign.sheet_xml(sheet) as source:
        while part := source.read(_PART):
            text = rest + part
            ranges.update(_MERGED.findall(text))
            hidden.update(_HIDDEN.findall(text))
            rest = text[-_LONGEST:]
    merged = defaultdict(list)
    for cells in ranges:
        column, first, _, last = range_boundaries(cells.decode())
        if last > first:
            merged[first].append((column - 1, last))
    return SheetMarks(dict(merged), {int(number) for number in hidden})
