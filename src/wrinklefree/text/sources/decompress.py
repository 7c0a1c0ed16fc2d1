"""Streams of files that may be compressed, and lines of bounded length."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, Protocol, cast

import pyarrow as pa

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BUFFER = 1 << 20


def plain_name(name: str) -> str:
    """``name`` without the suffix of its compression."""
    suffix = name[name.rfind(".") :]
    return name.removesuffix(suffix) if suffix in COMPRESSIONS else name


def decompressed(stream: BinaryIO, name: str) -> BinaryIO:
    """``stream`` as it is, or decompressed if the suffix of ``name`` says so.

    Members and frames that follow each other are read as one. Raises OSError for a stream without
    a byte, which is no compressed file; reading raises it where the stream is cut short or broken.
    """
    compression = COMPRESSIONS.get(name[name.rfind(".") :])
    if compression is None:
        return stream
    if not cast(io.BufferedReader, stream).peek(1):
        raise OSError(f"{name} has no byte, not even a header of {compression}")
    # Arrow's, since zstandard's own reader takes a cut frame for the end of the stream.
    raw = pa.CompressedInputStream(pa.PythonFile(stream, "r"), compression)
    return io.BufferedReader(cast(io.RawIOBase, raw), _BUFFER)


class LineStream(Protocol):
    """What lines can be read from."""

    def readline(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, to the end of the line at most."""
        ...


class ByteStream(Protocol):
    """What bytes can be read from."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes, none at the end."""
        ...


def bounded_lines(stream: LineStream, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(number from 1, line) of each line that is not blank; None for one of more bytes.

    Memory holds one line of at most ``max_bytes``.
    """
    number = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(_BUFFER)
            yield number, None
        elif line.strip():
            yield number, line


def read_bounded(stream: ByteStream, max_bytes: int) -> bytes | None:
    """All of ``stream``; None if it has more than ``max_bytes``, after a look at all of it."""
    data = bytearray()
    size = 0
    while chunk := stream.read(_BUFFER):  # to the end, where a stream says that it is cut short
        size += len(chunk)
        if size <= max_bytes:
            data += chunk
    return bytes(data) if size <= max_bytes else None
