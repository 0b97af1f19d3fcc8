"""A GGUF file as it lies on the disk: its metadata, where its tensors are, and what is wrong with it.

The layout is that of version 3 of the format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): a header,
key-value pairs, one entry per tensor, then the aligned data. Blocks of quantised weights are turned into numbers by
the package ``gguf``, llama.cpp's own.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..core.errors import ModelError
from ..core.extras import not_installed
from ..core.foreign_text import foreign

if TYPE_CHECKING:
    from numpy import ndarray

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
# Format characters of `struct` for the scalar types of the specification.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_CUT = "the file is cut: it ends before what its header announces"
_AGAIN = "Download or copy it again"
# A block of rows of fp32 numbers is what conversion holds in memory.
_ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the file.

    Attributes:
        name: Such as ``blk.0.attn_q.weight``.
        shape: Rows first, as torch has it (the file has it the other way round).
        kind: Number of its storage type, as ``gguf.GGMLQuantizationType`` has it.
        offset: Its first byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a file; tensors are read when they are asked for."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def text(self, key: str) -> str | None:
        """A string of the metadata, or None where there is none.

        Raises:
            ModelError: If it is of another type.
        """
        value = self.metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise ModelError(f"its metadata key {key} is not a string", where=str(self.path))
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number of the metadata, or ``default`` where there is none.

        Raises:
            ModelError: If it is of another type, not finite, or not above zero.
        """
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise ModelError(f"its metadata key {key} is not one positive number", where=str(self.path))
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of the metadata that is not negative, or ``default`` where there is none.

        Raises:
            ModelError: If it is of another type, or missing without a default.
        """
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelError(f"its metadata have no whole number {key}", where=str(self.path), fix=_AGAIN)
        return value

    def index(self, key: str, size: int) -> int | None:
        """A place in a list of ``size``, or None where the metadata name none.

        Raises:
            ModelError: If it is outside of the list.
        """
        if key not in self.metadata:
            return None
        value = self.whole(key)
        if value >= size:
            raise ModelError(f"its metadata key {key} is {value}, outside of {size}", where=str(self.path), fix=_AGAIN)
        return value

    def storage_of(self, tensor: StoredTensor) -> str:
        """The storage type's name, such as ``Q4_1``."""
        return _storage(tensor.kind, self.path).name

    def values(self, tensor: StoredTensor) -> Iterator[ndarray[Any, Any]]:
        """Its numbers in fp32, some thousand rows at a time; a vector is one row of shape [1, n]."""
        import gguf
        import numpy as np

        storage = _storage(tensor.kind, self.path)
        rows, columns = prod(tensor.shape[:-1]), tensor.shape[-1]
        width = _bytes_of(tensor, self.path) // rows
        stored = np.memmap(self.path, mode="r", offset=tensor.offset, shape=(rows, width), dtype=np.uint8)
        for first in range(0, rows, _ROWS_AT_ONCE):
            block: Any = gguf.quants.dequantize(np.ascontiguousarray(stored[first : first + _ROWS_AT_ONCE]), storage)
            yield block.reshape(-1, columns)


def read_header(path: Path) -> GgufFile:
    """Read everything but the weights, and prove that they are all there.

    Raises:
        ModelError: If it is no GGUF file, is cut, of a version or byte order we do not read, one part of several, or
            holds weights of a storage type that cannot be turned into numbers.
        MissingDependencyError: If the package ``gguf`` is not installed.
    """
    if importlib.util.find_spec("gguf") is None:
        raise not_installed(["gguf"], by="a GGUF file as a model")
    try:
        with path.open("rb") as file:
            header = _Reader(file, path.stat().st_size).header(path)
    except OSError as error:
        raise ModelError(f"the file cannot be read ({error.strerror})", where=str(path)) from error
    except (EOFError, struct.error) as error:
        raise ModelError(_CUT, where=str(path), fix=_AGAIN) from error
    except RecursionError as error:
        raise ModelError("its metadata are lists in lists without end", where=str(path), fix=_AGAIN) from error
    except UnicodeDecodeError as error:
        raise ModelError("its metadata are not UTF-8", where=str(path), fix=_AGAIN) from error
    _check(header)
    return header


class _Reader:
    """Reads the header's parts in their order; a length that leads past the end is the end of a cut file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size

    def header(self, path: Path) -> GgufFile:
        if self._bytes(4) != _MAGIC:
            raise ModelError("this is not a GGUF file: it does not begin with GGUF", where=str(path))
        version = self._one("I")
        if version not in _VERSIONS:
            order = version & 0xFFFF == 0
            what = "it is stored big-endian" if order else f"it is of version {version} of the format"
            raise ModelError(f"{what}; versions 2 and 3, little-endian, are read", where=str(path))
        tensor_count, pair_count = self._one("Q"), self._one("Q")
        metadata: dict[str, Any] = {}
        for _ in range(pair_count):
            key = self._string()
            metadata[key] = self._value(self._one("I"))
        entries = [self._tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ModelError("its metadata key general.alignment is not a positive number", where=str(path))
        start = -(-self._file.tell() // alignment) * alignment
        tensors = {name: StoredTensor(name, shape, kind, start + at) for name, shape, kind, at in entries}
        return GgufFile(path, metadata, tensors)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        dimensions = [self._one("Q") for _ in range(self._one("I"))]
        return name, tuple(reversed(dimensions)), self._one("I"), self._one("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, length = self._one("I"), self._one("Q")
            if inner in _SCALARS:
                form = _SCALARS[inner]
                return list(struct.unpack(f"<{length}{form}", self._bytes(length * struct.calcsize(f"<{form}"))))
            return [self._value(inner) for _ in range(length)]
        if kind not in _SCALARS:
            raise EOFError  # no such type: what precedes it was not what it seemed
        return self._one(_SCALARS[kind])

    def _string(self) -> str:
        return self._bytes(self._one("Q")).decode("utf-8")

    def _one(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]

    def _bytes(self, count: int) -> bytes:
        if count > self._left:
            raise EOFError
        self._left -= count
        return self._file.read(count)


def _check(header: GgufFile) -> None:
    where = str(header.path)
    parts = header.whole("split.count", 1)
    if parts > 1:
        raise ModelError(
            f"this is one of {parts} parts of a split model, and one whole file is needed",
            where=where,
            fix="Join them: llama-gguf-split --merge FIRST_PART JOINED_FILE",
        )
    size = header.path.stat().st_size
    for tensor in header.tensors.values():
        if tensor.offset + _bytes_of(tensor, header.path) > size:
            raise ModelError(_CUT, where=where, fix=_AGAIN)
    if not header.tensors:
        raise ModelError("it holds no weights: only a vocabulary", where=where, fix="Give the model's own file")


def _bytes_of(tensor: StoredTensor, path: Path) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[_storage(tensor.kind, path)]
    if not tensor.shape or not all(tensor.shape) or tensor.shape[-1] % block:
        raise ModelError(f"its tensor {foreign(tensor.name)} has an impossible shape", where=str(path), fix=_AGAIN)
    return prod(tensor.shape) // block * size


def _storage(kind: int, path: Path) -> Any:
    """The storage type of that number.

    Raises:
        ModelError: If ``gguf`` does not know it, or cannot turn it into numbers.
    """
    import gguf
    import numpy as np

    name = f"type {kind}"
    try:
        storage = gguf.GGMLQuantizationType(kind)
        name = storage.name
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[storage][1]), np.uint8), storage)
    except (ValueError, NotImplementedError) as error:  # how the package says so of a type it cannot read
        raise ModelError(
            f"its weights are stored as {name}, which the package gguf cannot turn into numbers",
            where=str(path),
            fix="Take a file quantised as Q4_K_M, Q5_K_M, Q8_0, F16 or BF16",
        ) from error
    return storage
