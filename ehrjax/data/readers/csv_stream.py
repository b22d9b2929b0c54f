"""A CSV file as a stream of record batches that keeps count of every row, good or malformed.

Plain or gzipped, UTF-8 (with or without a byte order mark) or UTF-16, any of the usual delimiters. Rows with a wrong
number of columns are skipped and reported by number. Bytes that are no UTF-8 become U+FFFD, and the batch says so.
"""

import codecs
import csv
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

_BLOCK_BYTES = 8 << 20  # near the cache: blocks of 32 MiB measured a quarter slower
_HEADER_BYTES = 1 << 16
_TAIL_BYTES = 1 << 16
_UNREADABLE = (pa.ArrowException, OSError, EOFError, zlib.error, zipfile.BadZipFile)

Locate = Callable[[Sequence[str]], dict[str, int]]


class RawBatch(NamedTuple):
    """Rows as parsed: columns named by field, with the header's name of each."""

    columns: dict[str, pa.Array]
    present: dict[str, str]  # field -> header name
    row: np.ndarray  # int64 [n], 1-based data row (blank lines are not counted)
    malformed: np.ndarray  # int64, rows skipped since the batch before
    has_replaced: bool = False  # some bytes of the file so far were no UTF-8 and read U+FFFD


def stream_csv(source: Path | BinaryIO, file: str, locate: Locate) -> Iterator[RawBatch]:
    """Stream the columns that `locate` (header names -> position by field) chooses; strings, dictionary-encoded.

    Raises ValueError naming `file` where it is empty, truncated, corrupt, or where no row fits the header.
    """
    try:
        yield from _stream(source, file, locate)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except _UNREADABLE as error:
        hint = "fetch it again; it may have been cut while it was copied"
        if "straddl" in str(error):
            hint = f"a row is longer than {_BLOCK_BYTES >> 20} MiB: a quote that opens a field is probably never closed"
        raise ValueError(f"{file}: cannot be read to its end ({error}): {hint}") from error


def _stream(source: Path | BinaryIO, file: str, locate: Locate) -> Iterator[RawBatch]:
    body = _Body(source, file)
    found = locate(body.header)
    if body.is_empty:
        return
    present = {name: body.header[i] for name, i in found.items()}
    malformed = _RowNumbers()
    reader = _open_csv(body, sorted(set(found.values())), malformed)
    num_rows, batch = 0, next(reader, None)
    while batch is not None:
        following = next(reader, None)  # one ahead, so that the last batch is known as the last
        rows, skipped = malformed.place(len(batch), is_last=following is None)
        if following is None and len(rows) and rows[-1] > malformed.last and body.ends_in_open_quote():
            rows, skipped = rows[:-1], np.append(skipped, rows[-1])  # cut inside the last field
        num_rows += len(rows)
        columns = {name: batch.column(str(i)).slice(0, len(rows)) for name, i in found.items()}
        yield RawBatch(columns, present, rows, skipped, body.has_replaced)
        batch = following
    if not num_rows:
        rows, skipped = malformed.place(0, is_last=True)
        if malformed.count > 1:
            raise ValueError(
                f"{file}: none of its {malformed.count} rows has the {len(body.header)} columns of its header; "
                "repair the header or the delimiter"
            )
        yield RawBatch({}, present, rows, skipped)


def _open_csv(body: "_Body", positions: Sequence[int], malformed: "_RowNumbers") -> pa.csv.CSVStreamingReader:
    text = pa.dictionary(pa.int32(), pa.string())
    names = [str(i) for i in range(len(body.header))]  # by position: header names may repeat
    return pa.csv.open_csv(
        pa.PythonFile(body, mode="r"),
        # A single thread: only then does the parser know the number of a malformed row. It is no slower.
        read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False, column_names=names),
        parse_options=pa.csv.ParseOptions(
            delimiter=body.delimiter,
            quote_char=body.quote_char,
            newlines_in_values=bool(body.quote_char),
            invalid_row_handler=malformed,
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=[names[i] for i in positions],
            column_types={names[i]: text for i in positions},
            check_utf8=False,  # `_Body` has seen to it
            strings_can_be_null=False,
        ),
    )


class _RowNumbers:
    """Numbers the good rows, given the malformed ones, which the CSV parser reports to it by a call."""

    def __init__(self):
        self._malformed: list[int] = []
        self._num_placed = 0
        self._num_swallowed = 0
        self._next_row = 1

    def __call__(self, row: Any) -> str:
        first = row.number + self._num_swallowed
        num_lines = row.text.rstrip("\r\n").count("\n") + 1  # an unclosed quote swallows lines: each counts as a row
        self._malformed.extend(range(first, first + num_lines))
        self._num_swallowed += num_lines - 1
        return "skip"

    @property
    def count(self) -> int:
        return len(self._malformed)

    @property
    def last(self) -> int:
        return self._malformed[-1] if self._malformed else 0

    def place(self, num_rows: int, *, is_last: bool) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the next `num_rows` good rows and of the malformed ones before or among them."""
        pending = np.array(self._malformed[self._num_placed :], np.int64)
        rows = np.arange(self._next_row, self._next_row + num_rows + len(pending), dtype=np.int64)
        if len(pending):
            rows = rows[~np.isin(rows, pending)]
        rows = rows[:num_rows]
        if num_rows:
            self._next_row = int(rows[-1]) + 1
        skipped = pending if is_last else pending[pending < self._next_row]
        self._num_placed += len(skipped)
        return rows, skipped


class _Body:
    """File object of a table's text after its header: decompressed, as UTF-8, remembering how it ended."""

    closed = False

    def __init__(self, source: Path | BinaryIO, file: str):
        self._raw = _open(source)
        self._decoder: codecs.IncrementalDecoder | None = None
        self._carry = b""  # first bytes of a character that the next chunk completes
        self._tail = b""
        self.has_replaced = False
        head = self._raw.read(_HEADER_BYTES)
        encoding, skip = _sniff_encoding(head)
        if encoding != "utf-8":
            self._decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        self._head = bytes(self._to_utf8(pa.py_buffer(head[skip:]))).lstrip(b"\r\n")
        while not re.search(rb"[\r\n]", self._head) and (more := self._next_chunk(_HEADER_BYTES)).size:
            self._head += bytes(more)
        line, _, self._head = re.match(rb"([^\r\n]*)(\r\n|\r|\n|$)(.*)", self._head, re.DOTALL).groups()
        if not line.strip():
            raise ValueError(f"{file}: is empty; expected a header row with the names of the columns")
        text = line.decode("utf-8", errors="replace")
        self.delimiter = max(",\t;|", key=text.count)
        # Vocabulary tables separated by tabs hold bare quotes; where their header quotes, so do their rows.
        self.quote_char = False if self.delimiter == "\t" and '"' not in text else '"'
        self.header = [name.strip() for name in next(csv.reader([text], delimiter=self.delimiter))]
        if not self._head.strip(b"\r\n"):
            self._head = bytes(self._next_chunk(_BLOCK_BYTES)).lstrip(b"\r\n")
        self.is_empty = not self._head

    def read_buffer(self, num_bytes: int) -> pa.Buffer:
        if self._head:
            chunk, self._head = pa.py_buffer(self._head), b""
        else:
            chunk = self._next_chunk(num_bytes)
        if chunk.size:
            self._tail = (self._tail + bytes(chunk[-_TAIL_BYTES:]))[-_TAIL_BYTES:]
        return chunk

    def read(self, num_bytes: int) -> bytes:
        return bytes(self.read_buffer(num_bytes))

    def close(self) -> None:
        self.closed = True

    def ends_in_open_quote(self) -> bool:
        """Whether the last line, cut before its end of line, stops inside a quoted field."""
        last_line = re.split(rb"[\r\n]", self._tail)[-1]
        return bool(self.quote_char) and last_line.count(b'"') % 2 == 1

    def _next_chunk(self, num_bytes: int) -> pa.Buffer:
        raw = self._raw.read_buffer(num_bytes)
        chunk = self._to_utf8(raw)
        while raw.size and not chunk.size:  # an empty chunk would read as the end
            raw = self._raw.read_buffer(num_bytes)
            chunk = self._to_utf8(raw)
        return chunk

    def _to_utf8(self, raw: pa.Buffer) -> pa.Buffer:
        """The bytes as valid UTF-8; without a copy where they are, as nearly always."""
        if self._decoder is not None:
            text = self._decoder.decode(bytes(raw), final=raw.size == 0)
            self.has_replaced |= "\ufffd" in text
            return pa.py_buffer(text.encode("utf-8", errors="replace"))
        if self._carry:
            raw, self._carry = pa.py_buffer(self._carry + bytes(raw)), b""
        num_open = _num_open_bytes(bytes(raw[-3:])) if raw.size > 3 else 0
        if num_open:
            self._carry, raw = bytes(raw[-num_open:]), raw[: raw.size - num_open]
        if _is_utf8(raw):
            return raw
        self.has_replaced = True
        return pa.py_buffer(bytes(raw).decode("utf-8", errors="replace").encode())


def _open(source: Path | BinaryIO) -> pa.NativeFile:
    raw = pa.OSFile(str(source)) if isinstance(source, Path) else pa.PythonFile(source, mode="r")
    is_gzip = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return pa.CompressedInputStream(raw, "gzip") if is_gzip else raw


def _sniff_encoding(head: bytes) -> tuple[str, int]:
    """Encoding and length of its mark; UTF-16 without a mark shows by the zero bytes of its ASCII letters."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if head.startswith(mark):
            return encoding, len(mark)
    start = head[:200]
    if start[1::2].count(0) > len(start) // 4:
        return "utf-16-le", 0
    if start[::2].count(0) > len(start) // 4:
        return "utf-16-be", 0
    return "utf-8", 0


def _num_open_bytes(end: bytes) -> int:
    """How many of the last three bytes begin a UTF-8 character that is not complete."""
    for num_bytes in (1, 2, 3):
        lead = end[-num_bytes]
        if lead >= 0xC0:
            needed = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2
            return num_bytes if needed > num_bytes else 0
        if lead < 0x80:
            return 0
    return 0


def _is_utf8(raw: pa.Buffer) -> bool:
    offsets = pa.py_buffer(np.array([0, raw.size], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, raw).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
