"""One file to one shard, whatever its kind; what cannot be read is refused in a sentence."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ftkit.config.paths import is_there
from ftkit.config.tree import DataConfig
from ftkit.data.reading.arrow_files import read_arrow, read_parquet
from ftkit.data.reading.decoding import COMPRESSIONS, text_lines
from ftkit.data.reading.delimited import read_delimited
from ftkit.data.reading.excel import read_workbook
from ftkit.data.reading.json_files import read_json, read_json_lines
from ftkit.data.reading.shards import Shard
from ftkit.data.reading.typed_header import without_types
from ftkit.data.spill import texts_of
from ftkit.errors import DataError, nearest

_TO_UNPACK = {
    ".zip": "unzip it, and give the file inside",
    ".tar": "unpack it, and give a file or folder inside",
    ".tgz": "unpack it, and give a file or folder inside",
    ".zst": "unpack it with zstd -d, and give the file inside",
    ".xls": "save it as .xlsx or CSV",
    ".ods": "save it as .xlsx or CSV",
    ".numbers": "export it as CSV",
    ".pkl": "save the table as Parquet or CSV: a pickle can run any code",
    ".pickle": "save the table as Parquet or CSV: a pickle can run any code",
    ".npy": "save the table as Parquet or CSV",
    **dict.fromkeys(COMPRESSIONS, "name a text file by what it holds, such as reviews.csv.gz, and unpack others"),
}


def read_file(path: Path, config: DataConfig) -> Shard:
    """Read a file of any kind that is read.

    Every column of CSV and TSV is text; a text file has one column `text`, one row a line with its line end.

    Args:
        path: the file; its suffix says what it is.
        config: `encoding` of text files; `separator` and `quotes` of CSV and TSV; `subset`, a workbook's sheet.

    Returns:
        At least one row.

    Raises:
        DataError: no such file, an unknown suffix, or a content that is not what the suffix says.
    """
    if not is_there(path) or not path.is_file():
        siblings = [file.name for file in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, siblings)}" if siblings else f"; there is no folder {path.parent} either"
        raise DataError(f"no file {path}{hint}")
    kind = kind_of_file(path)
    if kind not in KINDS:
        which = f"of kind {path.suffix!r}" if path.suffix else "without a suffix"
        cure = _TO_UNPACK.get(path.suffix.lower(), f"give one of {', '.join(KINDS)}")
        raise DataError(f"{path}: files {which} are not read; {cure}")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; give a file with rows")
    shard = KINDS[kind](path, config)
    names = shard.table.column_names
    if shard.table.num_rows == 0:
        raise DataError(f"{path} has no rows (columns: {names}); give a file with rows below its header")
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of one name in {names}; rename one of them")
    return shard


def kind_of_file(path: Path) -> str:
    """Return the suffix that says what a file is: `.csv` of `reviews.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSIONS and suffixes[-2:-1] and suffixes[-2] in TEXT_KINDS:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def is_known_suffix(path: Path) -> bool:
    """Whether a name looks like that of a file, readable or to be unpacked first."""
    return path.suffix.lower() in (*KINDS, *COMPRESSIONS, *_TO_UNPACK)


def _read_text(path: Path, config: DataConfig) -> Shard:
    table = pa.table({"text": texts_of(text_lines(path, config.encoding))})
    return Shard(str(path), table, unit="line")


DELIMITED = (".csv", ".tsv", ".tab")
"""The suffixes of tables whose columns one character separates."""
TEXT_KINDS: dict[str, Callable[[Path, DataConfig], Shard]] = {
    ".csv": lambda path, config: read_delimited(path, ",", config),
    ".tsv": lambda path, config: read_delimited(path, "\t", config),
    ".tab": lambda path, config: without_types(read_delimited(path, "\t", config)),
    ".json": lambda path, config: read_json(path, config.encoding),
    ".jsonl": lambda path, config: read_json_lines(path, config.encoding),
    ".ndjson": lambda path, config: read_json_lines(path, config.encoding),
    ".txt": _read_text,
}
"""The suffixes of text files, which have an encoding and may be compressed."""
KINDS: dict[str, Callable[[Path, DataConfig], Shard]] = {
    **TEXT_KINDS,
    ".parquet": lambda path, _: read_parquet(path),
    ".arrow": lambda path, _: read_arrow(path),
    ".xlsx": lambda path, config: read_workbook(path, config.subset),
    ".xlsm": lambda path, config: read_workbook(path, config.subset),
}
"""The suffixes of the files that are read, and what reads them."""
