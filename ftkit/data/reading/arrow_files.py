"""Parquet and Arrow files to shards, with the class names that they store."""

from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pa_parquet

from ftkit.data.reading.classes import stored_classes
from ftkit.data.reading.shards import Shard
from ftkit.data.spill import table_of
from ftkit.errors import DataError

_BUFFER_BYTES = 2**20
_ROWS = 2_000


def read_parquet(path: Path) -> Shard:
    """Read a Parquet file, and no more than the file: folders such as `lr=0.1` above it are not columns.

    Args:
        path: the file.

    Returns:
        Its rows.

    Raises:
        DataError: the file is damaged.
    """
    try:
        # Neither all columns of all rows before the first, nor a whole column of a group of rows.
        with pa_parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            return _shard(path, table_of(file.iter_batches(_ROWS), file.schema_arrow))
    except (pa.ArrowException, OSError) as error:
        _refuse_damaged(path, "Parquet", error)


def read_arrow(path: Path) -> Shard:
    """Map a stream (as `datasets` writes) or a file (as Arrow's own tools write) of record batches.

    Args:
        path: the file.

    Returns:
        Its rows.

    Raises:
        DataError: the file is damaged.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return _shard(path, pa.ipc.open_stream(source).read_all())
    except (pa.ArrowException, OSError):
        pass
    try:
        with pa.memory_map(str(path)) as source:
            return _shard(path, pa.ipc.open_file(source).read_all())
    except (pa.ArrowException, OSError) as error:
        _refuse_damaged(path, "Arrow", error)


def _shard(path: Path, table: pa.Table) -> Shard:
    table.validate(full=True)  # texts that are not UTF-8 would fail only when they are read, as our own fault
    return Shard(str(path), table, stored_classes(table, str(path)))


def _refuse_damaged(path: Path, kind: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:160]
    raise DataError(f"{path} is not a whole {kind} file ({reason}); copy or write it again") from None
