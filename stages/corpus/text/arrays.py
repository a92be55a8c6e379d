"""Convert between Arrow, numpy and Python arrays without importing pandas.

pyarrow.array, pyarrow.scalar, to_numpy, and functions of pyarrow.compute with a Python value import pandas to check the
type of their argument: a third of a second of CPU.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa


def strings(values: Sequence[str]) -> pa.Array:
    """Return ``values`` as large_string. Raises UnicodeEncodeError for half a surrogate pair."""
    return binaries([value.encode() for value in values]).view(pa.large_string())


def binaries(values: Sequence[bytes]) -> pa.Array:
    """Return ``values`` as large_binary."""
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    return slices(np.frombuffer(b"".join(values), np.uint8), offsets)


def slices(data: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """Return the bytes of ``data`` between ``offsets`` (int64, in bytes) as large_binary that shares their memory."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def numbers(values: np.ndarray) -> pa.Array:
    """Return ``values`` as an Arrow array that shares their memory."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def flags(values: np.ndarray) -> pa.Array:
    """Return ``values`` (bool) as an Arrow array of bits."""
    packed = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])


def integers(array: pa.Array) -> np.ndarray:
    """Return integers without nulls as int64."""
    return values(array).astype(np.int64)


def values(array: pa.Array) -> np.ndarray:
    """Return numbers without nulls as a numpy array that shares their memory."""
    return np.from_dlpack(array)


def truths(array: pa.Array) -> np.ndarray:
    """Return booleans without nulls as a numpy array."""
    return values(array.cast(pa.uint8())).view(np.bool_)


def join(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the chunks of ``column`` as one array, copied only if there are several."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write ``table`` to an Arrow file for `read_arrow`."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(path: Path) -> pa.Table:
    """Return the table in an Arrow file as a memory map."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def give_back() -> None:
    """Return freed memory that Arrow and the C library keep to the system, often a hundred megabytes."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def utf8(data: bytes) -> bool:
    """Return whether ``data`` is valid UTF-8, without a copy of it."""
    offsets = np.array([0, len(data)], np.int64)
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
