"""One file to one Arrow table, and every way in which that fails to one sentence."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from ftkit.errors import DataError, nearest

_CHUNK_ROWS = 10_000
_BLOCK_BYTES = 2**24  # the longest row of a CSV file that can be read


def read_table(path: Path) -> pa.Table:
    """Read a CSV, TSV, JSON, JSONL, Parquet, Arrow or text file.

    Every column of CSV and TSV is text; a text file has one column `text`, one row a line with its line end.

    Args:
        path: the file; its suffix says what it is.

    Returns:
        At least one row.

    Raises:
        DataError: no such file, an unknown suffix, or a content that is not what the suffix says.
    """
    reader = _READERS.get(path.suffix.lower())
    if not path.is_file():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, siblings)}" if siblings else f"; there is no folder {path.parent} either"
        raise DataError(f"no file {path}{hint}")
    if reader is None:
        raise DataError(
            f"{path}: files of kind {path.suffix or 'without a suffix'!r} are not read; "
            f"give one of {', '.join(_READERS)}"
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with rows")
    table = reader(path)
    if table.num_rows == 0:
        raise DataError(f"{path} has no rows (columns: {table.column_names}); give a file with rows below its header")
    if len(set(table.column_names)) < table.num_columns:
        raise DataError(f"{path} has two columns of one name in {table.column_names}; rename one of them")
    return table


def suffixes() -> list[str]:
    """Return the suffixes of the files that can be read."""
    return list(_READERS)


def _read_csv(path: Path) -> pa.Table:
    return _read_delimited(path, ",")


def _read_tsv(path: Path) -> pa.Table:
    return _read_delimited(path, "\t")


def _read_delimited(path: Path, delimiter: str) -> pa.Table:
    """Read every column as text: Arrow would guess types from the first block and fail at a later one."""
    _refuse_binary(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=delimiter), [])
        return pa_csv.read_csv(
            path,
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),  # one thread counts rows
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string())),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        _decode_all(path)
        raise DataError(_delimited_sentence(path, str(error))) from None


def _delimited_sentence(path: Path, reason: str) -> str:
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", reason)
    if ragged is None:
        return f"{path} cannot be read as a table: {' '.join(reason.split())}; check its quotes and separators"
    row, wanted, given = (int(text) for text in ragged.groups())
    return (
        f"{path}: row {row} (the header is row 1) has {given} field(s) for {wanted} columns; "
        "put texts that hold a separator into double quotes, and close every quote"
    )


def _read_lines(path: Path) -> pa.Table:
    _refuse_binary(path)
    return pa.table({"text": pa.array(_decoded_lines(path), pa.large_string())})


def _read_json_lines(path: Path) -> pa.Table:
    _refuse_binary(path)
    rows = (_parse_row(path, text, number) for number, text in enumerate(_decoded_lines(path), 1) if text.strip())
    return _table_of_rows(path, rows)


def _read_json(path: Path) -> pa.Table:
    """Read an array of objects; a file of one object a line is JSONL whatever its suffix."""
    _refuse_binary(path)
    text = "".join(_decoded_lines(path))
    if not text.lstrip().startswith("["):
        return _read_json_lines(path)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno} is no valid JSON ({error.msg}); correct that line") from None
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: entry {number} is a {_kind(row)}; write every row as an object of columns")
    return _table_of_rows(path, rows)


def _parse_row(path: Path, text: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {number} is no valid JSON ({error.msg}); write an array of objects, or one object a line"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{path}: line {number} is a {_kind(row)}; write every row as an object of columns")
    return row


def _table_of_rows(path: Path, rows: Iterable[dict[str, Any]]) -> pa.Table:
    chunk: list[dict[str, Any]] = []
    tables = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _CHUNK_ROWS:  # Python objects are some ten times their Arrow bytes: hold few of them
            tables.append(_chunk_table(path, chunk))
            chunk = []
    tables.append(_chunk_table(path, chunk))
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{path}: a column mixes kinds of values ({error}); write each column as one kind") from None


def _chunk_table(path: Path, rows: list[dict[str, Any]]) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (OverflowError, UnicodeEncodeError) as error:
            raise DataError(
                f"{path}: column {name!r} holds a value that cannot be kept ({error}); correct it"
            ) from None
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kinds = sorted({_kind(row[name]) for row in rows if row.get(name) is not None})
            raise DataError(
                f"{path}: column {name!r} mixes kinds of values ({' and '.join(kinds)}, or inside them); "
                "write them all as one kind"
            ) from None
    return pa.table(columns)


def _kind(value: object) -> str:
    words = {dict: "object", list: "list", str: "text", bool: "boolean", int: "number", float: "number"}
    return words.get(type(value), "null")


def _read_parquet(path: Path) -> pa.Table:
    try:
        return pa_parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        _refuse_damaged(path, "Parquet", error)


def _read_arrow(path: Path) -> pa.Table:
    """Map a stream (as `datasets` writes) or a file (as Arrow's own tools write) of record batches."""
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()
    except (pa.ArrowException, OSError):
        pass
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
        _refuse_damaged(path, "Arrow", error)


def _refuse_damaged(path: Path, kind: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:160]
    raise DataError(f"{path} is no whole {kind} file ({reason}); copy or write it again") from None


def _refuse_binary(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8192)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(f"{path} is UTF-16 (by its byte order mark); save it as UTF-8")
    if b"\0" in start:
        place = start.index(b"\0")
        raise DataError(
            f"{path} is a binary file (byte {place} is zero), not text; give the kind of file that its suffix says"
        )


def _decode_all(path: Path) -> None:
    for _ in _decoded_lines(path):
        pass


def _decoded_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}: line {number}, byte {error.start} of the line (0x{line[error.start]:02x}) is no UTF-8; "
                    "save the file as UTF-8"
                ) from None
            yield text.removeprefix("\ufeff") if number == 1 else text


_READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".txt": _read_lines,
}
