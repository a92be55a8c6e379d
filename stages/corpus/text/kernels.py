"""Compile numba kernels without the GIL, for plain threads, cached on disk.

numba's own threads (parallel=True) are not used: they raced on scratch arrays and cannot be cached.
"""

import hashlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any, cast

import numba
import numba.core.entrypoints
from numba.core.caching import _CacheLocator

_ROOM = Path(__file__).parents[1]  # stages/corpus, where all kernels are


def _cache_folder() -> Path:
    """Return a folder named by the content of all modules with kernels.

    numba compares only the file of a kernel itself. After a change of a kernel that it calls, in another file, it would
    run old machine code.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(_ROOM.rglob("*.py")):
        content = path.read_bytes()
        if b"\n@kernel" in content or b"\n@inlined" in content or path == Path(__file__):
            digest.update(content)
    root = os.environ.get("NUMBA_CACHE_DIR") or Path(__file__).parent / "__pycache__"
    return Path(root) / f"kernels-{digest.hexdigest()}"


def _without_extensions() -> None:
    """Keep numba from importing unused packages at its first kernel, half a second of CPU.

    They are the extensions that other packages register (awkward does) and scipy's linear algebra.
    """
    numba.core.entrypoints._already_initialized = True
    scipy, modules = "scipy.linalg.cython_blas", cast("dict[str, Any]", sys.modules)
    if modules.setdefault(scipy, None) is None:
        importlib.import_module("numba.np.arraymath")  # looks for it
        del modules[scipy]


def _share_between_checkouts() -> None:
    """Let copies of this repository share one NUMBA_CACHE_DIR: numba's own folders hold a hash of the whole path."""
    theirs = _CacheLocator.get_suitable_cache_subpath

    def place(py_file: str) -> str:
        path = Path(py_file).absolute()
        return path.parent.relative_to(_ROOM).as_posix() if path.is_relative_to(_ROOM) else str(theirs(py_file))

    _CacheLocator.get_suitable_cache_subpath = staticmethod(place)


_without_extensions()
_share_between_checkouts()
numba.config.CACHE_DIR = str(_cache_folder())

kernel = numba.njit(cache=True, nogil=True)
inlined = numba.njit(cache=True, nogil=True, inline="always")
