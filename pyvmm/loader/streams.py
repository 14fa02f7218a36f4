# SPDX-License-Identifier: Apache-2.0
"""Decompression in bounded pieces, so that no file, however it was made, can take the host's memory.

Python itself decompresses gzip, bzip2, xz and lzma, from 3.14 on zstd too. For the rest there are modules or
programs, or a sentence that says what to install.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from pyvmm.errors import ConfigError
    from pyvmm.loader.files import File, GuestMemory

    class Decoder(Protocol):
        """The interface of bz2.BZ2Decompressor and its like."""

        @property
        def eof(self) -> bool:
            """Whether the end of the compressed stream was reached."""

        @property
        def needs_input(self) -> bool:
            """Whether more output takes more input."""

        def decompress(self, data: bytes, max_length: int, /) -> bytes:
            """Up to ``max_length`` more bytes of output."""


_CHUNK = 1 << 20
# Enough for xz -9 (65 MiB), and a bound for what a damaged header may ask for.
_LZMA_MEMORY_LIMIT = 256 << 20
# Without an output bound in the interface, bound the input: a zstd block of 4 bytes can hold 128 KiB.
_UNBOUNDED_INPUT = 4096

_PROGRAMS = {"zstd": ("zstd", "-dcq"), "lz4": ("lz4", "-dcq"), "lzo": ("lzop", "-dcq")}


class Stream:
    """What ``size`` bytes of ``file`` from ``offset``, compressed with ``compression``, decompress to.

    Bytes after the end of the compressed stream are ignored, as boot loaders do. Every method raises
    ConfigError for a stream that is damaged or ends too early, and for a compression that this host lacks.
    """

    def __init__(self, file: File, compression: str, offset: int = 0, size: int | None = None) -> None:
        self.file = file
        self.compression = compression
        self._head = b""
        size = file.size - offset if size is None else size
        decoder = _decoder(compression)
        self._source: _Decoded | _Piped
        if decoder is not None:
            self._source = _Decoded(self, decoder, offset, offset + size)
        else:
            self._source = _Piped(self, offset, size)

    def close(self) -> None:
        """Release a program that may be running."""
        self._source.close()

    def peek(self, size: int) -> bytes:
        """The first ``size`` bytes of output, or all of it when there is less; later reads see them again."""
        while len(self._head) < size:
            data = self._source.read()
            if not data:
                break
            self._head += data
        return self._head[:size]

    def read(self) -> bytes:
        """The next piece of output, at most about 1 MiB; empty at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._source.read()

    def copy_to(self, memory: GuestMemory, gpa: int, limit: int) -> int:
        """Decompress into guest memory at ``gpa``, refusing more than ``limit`` bytes; returns the size."""
        done = 0
        while data := self.read():
            if done + len(data) > limit:
                raise self.too_big(limit)
            memory.write(gpa + done, data)
            done += len(data)
        return done

    def copy_to_file(self, limit: int) -> File:
        """Decompress into an unnamed file in memory, refusing more than ``limit`` bytes."""
        unpacked = self.file.unnamed()
        try:
            while data := self.read():
                if unpacked.size + len(data) > limit:
                    raise self.too_big(limit)
                unpacked.append(data)
        except BaseException:
            unpacked.close()
            raise
        return unpacked

    def too_big(self, limit: int) -> ConfigError:
        """The error for output of more than ``limit`` bytes."""
        return self.file.error(
            f"is damaged, or does not fit: its {self.compression} stream holds more than {limit >> 20} MiB."
        )

    def damaged(self, reason: object) -> ConfigError:
        """The error for input that cannot be decompressed."""
        return self.file.error(
            f"is damaged: its {self.compression} stream cannot be decompressed ({reason})."
        )

    def truncated(self) -> ConfigError:
        """The error for input that ends too early."""
        return self.file.error(f"is truncated: its {self.compression} stream ends too early.")


class _Decoded:
    """Output of a decoder in this process."""

    def __init__(self, stream: Stream, decoder: Decoder, offset: int, end: int) -> None:
        self._stream = stream
        self._decoder = decoder
        self._offset = offset
        self._end = end
        self._input = min(_CHUNK, getattr(decoder, "input_limit", _CHUNK))

    def read(self) -> bytes:
        decoder = self._decoder
        while not decoder.eof:
            data = self._next_input() if decoder.needs_input else b""
            exhausted = decoder.needs_input and not data
            try:
                output = decoder.decompress(data, _CHUNK)
            except MemoryError:
                raise
            except Exception as error:  # zlib.error, LZMAError, OSError, ZstdError: one for each module
                raise self._stream.damaged(error) from error
            if output:
                return output
            if exhausted and not decoder.eof:
                raise self._stream.truncated()
        return b""

    def _next_input(self) -> bytes:
        data = self._stream.file.read(self._offset, min(self._input, self._end - self._offset))
        self._offset += len(data)
        return data

    def close(self) -> None:
        pass


def _decoder(compression: str) -> Decoder | None:
    """A decoder in this process, or None when it takes a program."""
    if compression == "gzip":
        return _Gzip()
    if compression == "bzip2":
        import bz2

        return bz2.BZ2Decompressor()
    if compression in ("xz", "lzma"):
        import lzma

        kind = lzma.FORMAT_XZ if compression == "xz" else lzma.FORMAT_ALONE
        return lzma.LZMADecompressor(kind, memlimit=_LZMA_MEMORY_LIMIT)
    return _zstd_decoder() if compression == "zstd" else None


class _Gzip:
    """zlib's gzip decoder with the interface of the others."""

    def __init__(self) -> None:
        import zlib

        self._decoder = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


def _zstd_decoder() -> Decoder | None:
    from importlib import import_module

    for name in ("compression.zstd", "backports.zstd"):
        try:
            decoder: Decoder = import_module(name).ZstdDecompressor()
        except ImportError:
            continue
        return decoder
    try:
        return _Zstandard(import_module("zstandard").ZstdDecompressor().decompressobj())
    except ImportError:
        return None


class _Zstandard:
    """The ``zstandard`` package's decoder with the interface of the others."""

    input_limit = _UNBOUNDED_INPUT
    needs_input = True

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    def decompress(self, data: bytes, _max_length: int) -> bytes:
        return bytes(self._decoder.decompress(data))


class _Piped:
    """Output of a program that decompresses its standard input."""

    def __init__(self, stream: Stream, offset: int, size: int) -> None:
        import os
        import subprocess

        command = _program(stream)
        self._stream = stream
        self._messages = os.memfd_create("messages")
        source = stream.file.copy_of(offset, size)
        try:
            self._process = subprocess.Popen(
                command, stdin=source, stdout=subprocess.PIPE, stderr=self._messages
            )
        finally:
            os.close(source)

    def read(self) -> bytes:
        pipe = self._process.stdout
        assert pipe is not None
        data = pipe.read(_CHUNK)
        if not data and self._process.wait():
            raise self._stream.damaged(self._last_message())
        return data

    def _last_message(self) -> str:
        import os

        text = os.pread(self._messages, 4096, 0).decode(errors="replace")
        return (text.strip().splitlines() or ["no reason given"])[-1]

    def close(self) -> None:
        import os

        self._process.kill()
        self._process.communicate()
        os.close(self._messages)


def _program(stream: Stream) -> tuple[str, ...]:
    """The command for a compression. Raises ConfigError when there is none."""
    import shutil

    name = stream.compression
    if name not in _PROGRAMS:
        raise stream.file.error(
            f"is compressed with {name!r}, which pyvmm does not know; decompress it first."
        )
    program = _PROGRAMS[name][0]
    if shutil.which(program) is None:
        raise stream.file.error(
            f"is compressed with {name}, which this Python cannot decompress; "
            f"install the program {program}, or decompress the file first."
        )
    return _PROGRAMS[name]
