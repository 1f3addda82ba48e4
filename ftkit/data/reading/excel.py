"""Excel workbooks to rows: one sheet, its first row the header, every cell as it is stored."""

import datetime
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ftkit.data.reading.shards import Shard
from ftkit.data.reading.sheet_marks import SheetMarks, marks_of
from ftkit.data.reading.values import Row, table_of_rows
from ftkit.errors import DataError, DependencyError

# Office Open XML writes control characters as _x000D_, and _x000D_ itself as _x005F_x000D_ (ECMA-376, ST_Xstring).
_ESCAPED = re.compile(r"_x00([01][0-9A-Fa-f])_|_x005F_(?=x[0-9A-Fa-f]{4}_)")
_DATES = (datetime.date, datetime.time, datetime.timedelta)


def read_workbook(path: Path, sheet: str | None) -> Shard:
    """Read a sheet of a workbook.

    Args:
        path: the file.
        sheet: the name of the sheet, or None where one sheet alone is visible and holds something.

    Returns:
        Its rows, with their numbers as Excel shows them; empty rows are left out. The value of a merged cell is that of
        each of its rows that hold something else; where it spans columns too, it is that of the first one.

    Raises:
        DataError: a damaged file, several sheets, or a cell that holds an error, a formula without result, or a date
            among other values.
        DependencyError: openpyxl is missing.
    """
    values, formulas = (_open(path, data_only=is_value) for is_value in (True, False))
    with closing(values), closing(formulas):
        name = _choose_sheet(path, values, sheet)
        numbers: list[int] = []
        marks = marks_of(values[name])
        rows = _rows(path, zip(_cells(values[name]), _cells(formulas[name]), strict=True), marks, numbers)
        table = table_of_rows(rows, lambda row: f"{path}: row {numbers[row]}")
    others = [other.title for other in values.worksheets if other.title != name]
    notes = [f"sheet {name!r} of {len(others) + 1}"] if others else []
    return Shard(str(path), table, places=np.array(numbers, np.int64), notes=(*notes, *marks.notes()))


def _open(path: Path, *, data_only: bool) -> Any:
    try:
        import openpyxl
        from openpyxl.utils.exceptions import InvalidFileException
    except ImportError:
        raise DependencyError(
            f"{path}: Excel workbooks are read by openpyxl: pip install 'ftkit[excel]', or save the sheet as CSV"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of drop-down lists and styles that it does not know
            return openpyxl.load_workbook(path, read_only=True, data_only=data_only)
    except (zipfile.BadZipFile, InvalidFileException, KeyError, ValueError, SyntaxError, OSError) as error:
        raise DataError(
            f"{path} is not a whole Excel workbook ({error}), or it is protected by a password; save it again without"
        ) from None


def _choose_sheet(path: Path, book: Any, wanted: str | None) -> str:
    names = [sheet.title for sheet in book.worksheets]
    if wanted is not None:
        if wanted not in names:
            raise DataError(f"{path} has no sheet {wanted!r}, which data.subset names; it has {', '.join(names)}")
        return wanted
    filled = [sheet.title for sheet in book.worksheets if sheet.sheet_state == "visible" and any(_filled(sheet))]
    if len(filled) > 1:
        raise DataError(
            f"{path} has several sheets ({', '.join(filled)}); name one with --set data.subset='{filled[0]}'"
        )
    if not filled:
        raise DataError(f"{path} has no visible sheet with cells; give a sheet with a header and rows")
    return str(filled[0])


def _filled(sheet: Any) -> Iterator[bool]:
    return (cell.value is not None for row in _cells(sheet) for cell in row)


def _cells(sheet: Any) -> Iterator[tuple[Any, ...]]:
    sheet.reset_dimensions()  # what a file says of its size is often wrong
    return iter(sheet.iter_rows())


def _rows(
    path: Path, cells: Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]], marks: SheetMarks, numbers: list[int]
) -> Iterator[Row]:
    """Yield the rows below the header, and note their numbers."""
    names: dict[int, str] = {}
    are_dates: dict[int, bool] = {}
    for number, (stored, written) in enumerate(cells, 1):
        filled = {
            place: value
            for place, (cell, formula) in enumerate(zip(stored, written, strict=True))
            if (value := _value(path, number, cell, formula)) is not None
        }
        if not names:
            names = _names(path, filled)
        elif filled:
            if len(names) == 1 < len(filled) and not numbers:
                raise DataError(
                    f"{path}: row {number} has {len(filled)} cells below the one of {next(iter(names.values()))!r}; "
                    "let the row with the names of the columns be the first, with nothing above it"
                )
            for place, value in filled.items():
                if are_dates.setdefault(place, isinstance(value, _DATES)) != isinstance(value, _DATES):
                    raise DataError(
                        f"{path}, row {number}: column {names.get(place, _letters(place))!r} has dates and other "
                        "values, as Excel makes of texts such as 1/2; write the dates as text"
                    )
            marks.fill(number, filled)
            numbers.append(number)
            yield dict.fromkeys(names.values()) | {names.get(at, _letters(at)): value for at, value in filled.items()}


def _value(path: Path, number: int, cell: Any, formula: Any) -> Any:
    """Return what a cell holds; a formula is its stored result."""
    if formula.value is not None and formula.data_type == "f" and cell.value is None:
        raise DataError(
            f"{path}, row {number} has a formula without a stored result; open and save the file in Excel, or save the "
            "sheet as CSV"
        )
    if cell.value is not None and cell.data_type == "e":
        raise DataError(f"{path}, row {number} has the error {cell.value}; correct the cell, or empty it")
    return _ESCAPED.sub(_unescaped, cell.value) if isinstance(cell.value, str) else cell.value


def _unescaped(match: re.Match[str]) -> str:
    return "_" if match[1] is None else chr(int(match[1], 16))


def _names(path: Path, filled: dict[int, Any]) -> dict[int, str]:
    names = {place: str(value) for place, value in filled.items()}
    if len(set(names.values())) < len(names):
        raise DataError(f"{path} has two columns of one name in {list(names.values())}; rename one of them")
    return names


def _letters(place: int) -> str:
    """Return a column's letters, as Excel shows them: A, B, ..., Z, AA."""
    before, last = divmod(place, 26)
    return (_letters(before - 1) if before else "") + chr(ord("A") + last)
