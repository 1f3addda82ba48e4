"""CSV and TSV files to rows of texts, exactly as they are written."""

import csv
import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pa_csv

from ftkit.config.tree import DataConfig
from ftkit.data.decoding import utf8_blocks
from ftkit.data.shards import Shard
from ftkit.errors import DataError

_BLOCK_BYTES = 2**24  # the longest row that can be read


def read_delimited(path: Path, separator: str, config: DataConfig) -> Shard:
    """Read every column as text: Arrow would guess types from the first block and fail at a later one."""
    content = b"".join(utf8_blocks(path, config.encoding))
    try:
        head = io.StringIO(content[:_BLOCK_BYTES].decode(errors="ignore"), newline="")
        names = next(csv.reader(head, delimiter=separator), [])
        table = pa_csv.read_csv(
            pa.BufferReader(content),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),  # one thread counts rows
            parse_options=pa_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.large_string())),
        )
    except (pa.ArrowInvalid, csv.Error) as error:
        raise DataError(_delimited_sentence(path, str(error))) from None
    return Shard(str(path), table)


def _delimited_sentence(path: Path, reason: str) -> str:
    ragged = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", reason)
    if ragged is None:
        return f"{path} cannot be read as a table: {' '.join(reason.split())}; check its quotes and separators"
    row, wanted, given = (int(text) for text in ragged.groups())
    return (
        f"{path}: row {row} (the header is row 1) has {given} field(s) for {wanted} columns; "
        "put texts that hold a separator into double quotes, and close every quote"
    )
