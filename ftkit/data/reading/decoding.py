"""The content of a text file as UTF-8, a block at a time, whatever its encoding and compression."""

import bz2
import codecs
import gzip
import itertools
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ftkit.errors import DataError

COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
"""The suffixes of compressed files that are read, and what opens them."""

_BLOCK_BYTES = 2**20  # small enough for a processor's cache, in which the counting of quotes is twice as fast
_BYTE_ORDER_MARKS = {  # the longer ones first: UTF-32's begins like UTF-16's
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\x1f\x8b": "a gzip file",
    b"\xd0\xcf\x11\xe0": "an old Office document",
}
_SWAPPED = {"utf-16-le": "utf-16-be", "utf-16-be": "utf-16-le"}
_SWAPPED_SIGNS = re.compile("[\ufffe\u0a00]")  # a byte order mark and a line feed, the wrong way round: not characters
_CONTROLS = re.compile("[\x80-\x84\x86-\x9f]")  # Latin-1 has controls where Windows' cp1252 has quotes and dashes


def text_lines(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines of a text file with their ends; only LF ends a line.

    Args:
        path: the file.
        encoding: of the file, as Python knows it.

    Yields:
        Lines without a byte order mark.

    Raises:
        DataError: the file is not a text file, or has another encoding.
    """
    for block in utf8_blocks(path, encoding):
        *lines, rest = block.decode("utf-8").split("\n")
        yield from (line + "\n" for line in lines)
        if rest:
            yield rest


def utf8_blocks(path: Path, encoding: str, end: bytes = b"\n") -> Iterator[bytes]:
    """Yield the content of a text file in UTF-8, without a byte order mark.

    Args:
        path: the file.
        encoding: of the file, as Python knows it.
        end: the byte of ASCII that a block ends with; only the last block may end with another.

    Yields:
        Blocks of some 1 MiB each, which are whole lines where `end` is that of a line.

    Raises:
        DataError: the file is not a text file, is damaged, or has another encoding.
    """
    offset = line_start = 0
    for block in _utf8_parts(path, encoding, end):
        problem = _problem(block, offset - line_start)
        if problem is not None:
            place, told = problem
            raise DataError(f"{path}: line {_line_at(path, encoding, offset + place)}{told}")
        line_start = offset + block.rfind(b"\n") + 1 if b"\n" in block else line_start
        offset += len(block)
        yield block


def is_plain(path: Path, encoding: str) -> bool:
    """Whether the file's own bytes are what `utf8_blocks` gives, but for a byte order mark."""
    return is_utf8(encoding) and path.suffix.lower() not in COMPRESSIONS


def is_utf8(encoding: str) -> bool:
    """Whether an encoding is UTF-8, with a byte order mark or without."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _utf8_parts(path: Path, encoding: str, end: bytes) -> Iterator[bytes]:
    chunks = _recognised(path, _chunks(path), encoding)
    blocks = _cut_behind(end, chunks if is_utf8(encoding) else _transcoded(path, chunks, encoding))
    first = next(blocks).removeprefix(codecs.BOM_UTF8)
    return filter(None, itertools.chain((first,), blocks))


def _line_at(path: Path, encoding: str, offset: int) -> int:
    """Return the number of the line at a place; the file is read again, which costs less than counting all along."""
    line = 1
    for block in _utf8_parts(path, encoding, b"\n"):
        if offset < len(block):
            return line + block.count(b"\n", 0, offset)
        line, offset = line + block.count(b"\n"), offset - len(block)
    return line


def _chunks(path: Path) -> Iterator[bytes]:
    suffix = path.suffix.lower()
    try:
        with COMPRESSIONS.get(suffix, open)(path, "rb") as file:
            while chunk := file.read(_BLOCK_BYTES):
                yield chunk
    except PermissionError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; ask for the right to it, or name a copy") from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        cure = "is truncated or damaged" if suffix in COMPRESSIONS else "cannot be read"
        raise DataError(f"{path} {cure} ({error}); copy or compress it again") from None


def _recognised(path: Path, chunks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Refuse a file whose first bytes say that it is something else."""
    start = next(chunks, b"")
    for mark, other in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark) and not codecs.lookup(encoding).name.startswith(other):
            raise DataError(
                f"{path} is {other.upper()} by its byte order mark; save it as UTF-8, or pass "
                f"--set data.encoding={other}"
            )
    for mark, what in _OTHER_KINDS.items():
        if start.startswith(mark):
            raise DataError(f"{path} is {what}, not text; give it the suffix of what it is, or unpack it")
    yield start
    yield from chunks


def _transcoded(path: Path, chunks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """Decode strictly, and refuse what decodes but cannot be meant: the bytes of UTF-8, or Latin-1's controls."""
    decoder, utf8 = codecs.getincrementaldecoder(encoding)(), _Utf8Watch()
    swapped = _SWAPPED.get(codecs.lookup(encoding).name)
    is_latin_1 = codecs.lookup(encoding).name == "iso8859-1"
    line = 1
    for chunk in itertools.chain(chunks, (b"",)):
        utf8.look_at(chunk)
        try:
            text = decoder.decode(chunk, not chunk)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(encoding, "ignore").count("\n")
            byte = f"0x{error.object[error.start]:02x}"
            raise DataError(_not_in(path, line, byte, encoding)) from None
        except UnicodeError:  # of the codecs of UTF-16 and UTF-32, which ask for the mark
            order = f"{codecs.lookup(encoding).name}-{_byte_order(chunk)}"
            raise DataError(f"{path} has no byte order mark; pass --set data.encoding={order}") from None
        if swapped is not None and _SWAPPED_SIGNS.search(text):
            raise DataError(f"{path} is not {encoding} but its other byte order; pass --set data.encoding={swapped}")
        control = _CONTROLS.search(text) if is_latin_1 else None
        if control is not None:
            line += text.count("\n", 0, control.start())
            raise DataError(_not_in(path, line, f"0x{ord(control[0]):02x}", encoding) + " such as cp1252")
        line += text.count("\n")
        yield text.encode()
    if utf8.is_likely and not codecs.lookup(encoding).name.startswith("utf"):
        raise DataError(f"{path} is UTF-8 by all of its bytes, not {encoding}; leave data.encoding out")


@dataclass
class _Utf8Watch:
    """Whether all bytes so far are UTF-8, and not ASCII alone: other encodings are never so by chance."""

    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))
    is_valid: bool = True
    is_ascii: bool = True

    @property
    def is_likely(self) -> bool:
        return self.is_valid and not self.is_ascii

    def look_at(self, chunk: bytes) -> None:
        self.is_ascii = self.is_ascii and chunk.isascii()
        try:
            if self.is_valid:
                self.decoder.decode(chunk, not chunk)
        except UnicodeDecodeError:
            self.is_valid = False


def _not_in(path: Path, line: int, byte: str, encoding: str) -> str:
    return (
        f"{path}: line {line} has the byte {byte}, which is not a character of {encoding}; save the file as UTF-8, or "
        "name its own encoding with --set data.encoding=..."
    )


def _cut_behind(end: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Cut behind the last of some bytes in each chunk; what follows it goes to the next block."""
    rest: list[bytes] = []
    for chunk in chunks:
        place = chunk.rfind(end) + 1
        if place:
            yield b"".join((*rest, chunk[:place]))
            rest = []
        rest.append(chunk[place:])
    yield b"".join(rest)


def _problem(block: bytes, in_line: int) -> tuple[int, str] | None:
    """Return the place and the words of what is wrong with a block: it is not UTF-8, or holds zero bytes.

    Args:
        block: of the file.
        in_line: bytes of its first line that earlier blocks have.
    """
    if b"\0" in block:
        return block.index(b"\0"), _zeros(block)
    try:
        if not block.isascii():  # Arrow checks twice as fast as Python decodes
            buffers = [None, pa.py_buffer(np.array([0, len(block)], np.int64)), pa.py_buffer(block)]
            pa.Array.from_buffers(pa.large_string(), 1, buffers).validate(full=True)
    except pa.ArrowInvalid:
        return _not_utf8(block, in_line)
    return None


def _zeros(block: bytes) -> str:
    """Return the words for zero bytes: stray ones, or those with which UTF-16 writes Latin letters and line ends."""
    order = f"utf-16-{_byte_order(block)}"  # the first block that has any begins with the file
    if 4 * max(block[::2].count(0), block[1::2].count(0)) < len(block) // 2:
        return f" holds a zero byte; take it out, or pass --set data.encoding={order} where the file is UTF-16"
    return f" holds zero bytes, as UTF-16 does; save the file as UTF-8, or pass --set data.encoding={order}"


def _byte_order(start: bytes) -> str:
    """Return the order in which the beginning of a file has the zero bytes of Latin letters and line ends."""
    return "be" if start[::2].count(0) > start[1::2].count(0) else "le"


def _not_utf8(block: bytes, in_line: int) -> tuple[int, str]:
    try:
        block.decode()
    except UnicodeDecodeError as error:
        line_end = block.rfind(b"\n", 0, error.start)
        place = error.start - line_end - 1 + (in_line if line_end < 0 else 0)
        told = (
            f", byte {place} of the line (0x{block[error.start]:02x}) is not UTF-8; save the file as UTF-8, or name "
            "its encoding, such as --set data.encoding=cp1252 for files of Windows and Excel"
        )
        return error.start, told
    raise AssertionError("Arrow and Python disagree on what is UTF-8")
