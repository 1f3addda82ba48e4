"""Rows and tokens that are many lie on a disk while a run uses them, so that memory does not grow with the data.

They are in files without a name, which end with the process however that ends, and are read as if they were in memory:
the system brings the pages that are looked at, and takes them away where memory is short.
"""

import errno
import itertools
import mmap
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ftkit.data.chunks import chunks
from ftkit.errors import DataError

LEAST_BYTES = 2**23
"""What is less stays in memory."""
_ROWS = 10_000
_CHARACTERS = 2**20
_FOLDER = Path("/var/tmp")  # the file has no name
"""Of files that may be large (file-hierarchy(7)); a system may keep /tmp in its memory."""


def table_of(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """Return the table of some batches, which are asked for one at a time.

    Args:
        batches: of rows.
        schema: of each.

    Raises:
        DataError: there is no room on the disk.
    """
    tables = tables_of(batches)
    return pa.concat_tables(tables) if tables else schema.empty_table()


def tables_of(batches: Iterable[pa.RecordBatch]) -> list[pa.Table]:
    """Return a table for each run of batches of one schema.

    Args:
        batches: of rows, which are asked for one at a time.

    Raises:
        DataError: there is no room on the disk.
    """
    held: deque[pa.RecordBatch] = deque()
    coming = iter(batches)
    for batch in coming:
        held.append(batch)
        if sum(waiting.nbytes for waiting in held) >= LEAST_BYTES:
            return _mapped_tables(_emptied(held, coming))
    return [pa.Table.from_batches(list(run), schema) for schema, run in _runs(held)]


def texts_of(texts: Iterable[str]) -> pa.ChunkedArray:
    """Return a column of texts, which are asked for one at a time."""
    return table_of(_text_batches(texts), pa.schema({"": pa.large_string()}))[""]


def changed(column: pa.ChunkedArray, kind: pa.DataType, change: Callable[[pa.Array], pa.Array]) -> pa.ChunkedArray:
    """Return a column with its values changed, some thousand at a time.

    Args:
        column: of whatever size.
        kind: what the values are after it.
        change: gives one value for each.
    """
    slices = (chunk.slice(start, _ROWS) for chunk in column.chunks for start in range(0, len(chunk), _ROWS))
    return table_of((_batch(change(part)) for part in slices), pa.schema({"": kind}))[""]


def taken(rows: pa.Table, places: NDArray[np.int64]) -> pa.Table:
    """Return some rows of a table.

    Args:
        rows: of whatever size.
        places: int64 [rows to keep], ascending.
    """
    if rows.nbytes < LEAST_BYTES:
        return rows.take(pa.array(places))

    def parts() -> Iterator[pa.RecordBatch]:
        for start in range(0, rows.num_rows, _ROWS):
            first, behind = np.searchsorted(places, (start, start + _ROWS))
            chosen = places[first:behind] - start
            yield from rows.slice(start, _ROWS).take(pa.array(chosen)).to_batches()

    return table_of(parts(), rows.schema)


class Growing:
    """A flat array that grows at its end."""

    def __init__(self, dtype: type[np.generic]) -> None:
        """Begin with nothing.

        Args:
            dtype: of the array.
        """
        self._dtype = np.dtype(dtype)
        self._held: list[NDArray[Any]] = []
        self._num_held = self._num_written = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        """Return the number of values so far."""
        return self._num_held + self._num_written

    def add(self, values: Any) -> None:
        """Put values at the end.

        Args:
            values: a sequence of numbers.

        Raises:
            DataError: there is no room on the disk.
        """
        added = np.asarray(values, self._dtype)
        if not len(added):  # an empty array takes a hundred bytes, and there may be one for each text
            return
        self._held.append(added)
        self._num_held += len(added)
        if self._num_held * self._dtype.itemsize >= LEAST_BYTES:
            self._write()

    def array(self) -> NDArray[Any]:
        """Return all of them; nothing is added after that."""
        if self._file is None:
            return np.concatenate([np.empty(0, self._dtype), *self._held])
        self._write()
        with _explaining():
            self._file.flush()
        # A page that is written to becomes memory of this process, so that the array is like any other.
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._file.close()
        return np.frombuffer(mapped, self._dtype)

    def _write(self) -> None:
        if self._file is None:
            self._file = _file()
        _write(self._file, np.concatenate(self._held or [np.empty(0, self._dtype)]))
        self._num_written += self._num_held
        self._held, self._num_held = [], 0


def _batch(column: pa.Array) -> pa.RecordBatch:
    return pa.record_batch([column], names=[""])


def _text_batches(texts: Iterable[str]) -> Iterator[pa.RecordBatch]:
    for chunk in chunks(texts, len, _ROWS, _CHARACTERS):
        yield _batch(pa.array(chunk, pa.large_string()))


def _runs(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    return itertools.groupby(batches, attrgetter("schema"))


def _mapped_tables(batches: Iterator[pa.RecordBatch]) -> list[pa.Table]:
    with _file() as file:
        with _explaining():
            for schema, run in _runs(batches):
                with pa.ipc.new_stream(file, schema) as writer:  # streams end to end: a file has one schema
                    for batch in run:
                        writer.write_batch(batch)
            file.flush()
        mapped = pa.BufferReader(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    tables: list[pa.Table] = []
    while mapped.tell() < mapped.size():
        tables.append(pa.ipc.open_stream(mapped).read_all())
    return tables


def _emptied(held: deque[pa.RecordBatch], coming: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    while held:
        yield held.popleft()
    yield from coming


def _file() -> IO[bytes]:
    return tempfile.TemporaryFile(dir=_folder())  # whoever asks for it closes it


def _folder() -> Path:
    """Return where files that may be large belong: where TMPDIR says, else where a disk is."""
    is_usable = "TMPDIR" not in os.environ and os.access(_FOLDER, os.W_OK | os.X_OK)
    return _FOLDER if is_usable else Path(tempfile.gettempdir())


def _write(file: IO[bytes], values: NDArray[Any]) -> None:
    with _explaining():
        file.write(values.data)


@contextmanager
def _explaining() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explained(error) from None


def _explained(error: OSError) -> Exception:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return DataError(
        f"{_folder()} has no room for the rows and tokens of this data, which lie there while the run lasts; make room "
        "there, or name another folder with TMPDIR"
    )
