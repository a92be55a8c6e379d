"""Arrow arrays from Python's and numpy's values.

pyarrow.array and pyarrow.scalar look whether they are given something of pandas', and import pandas for that: a third
of a second of CPU. So do functions of pyarrow.compute that get a Python value, and an array's to_numpy.
"""

import ctypes

import numpy as np
import pyarrow as pa


def strings(values: list[str]) -> pa.Array:
    """large_string. Raises UnicodeEncodeError for half a surrogate pair."""
    encoded = [value.encode() for value in values]
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    return pa.Array.from_buffers(
        pa.large_string(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    )


def numbers(values: np.ndarray) -> pa.Array:
    """The array itself, not copied."""
    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def flags(values: np.ndarray) -> pa.Array:
    """bool."""
    packed = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(packed)])


def integers(array: pa.Array) -> np.ndarray:
    """int64, of integers without null values."""
    return values(array).astype(np.int64)


def values(array: pa.Array) -> np.ndarray:
    """The array itself, not copied, of numbers without null values."""
    return np.from_dlpack(array)


def truths(array: pa.Array) -> np.ndarray:
    """bool, of such without null values."""
    return values(array.cast(pa.uint8())).view(np.bool_)


def join(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """One array, copied only where there are several."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def give_back() -> None:
    """Returns to the system what Arrow and the C library keep of freed memory, often a hundred megabytes."""
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def utf8(data: bytes) -> bool:
    """Whether all of ``data`` is valid, without a copy of it."""
    offsets = np.array([0, len(data)], np.int64)
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    try:
        text.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
