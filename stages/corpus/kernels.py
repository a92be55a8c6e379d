"""How every numba kernel here is compiled: without the GIL, for plain threads, cached on disk.

numba's own threads (parallel=True) are not used: they raced on scratch arrays and cannot be cached.
"""

import hashlib
import importlib
import os
import sys
from pathlib import Path

import numba
import numba.core.entrypoints

_FOLDER = Path(__file__).parent


def _cache_folder() -> Path:
    """A folder named by the content of all modules with kernels.

    numba looks for changes only in the file a kernel stands in; a change to one that it calls, in another
    file, would go unseen and old machine code would run.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(_FOLDER.glob("*.py")):
        content = path.read_bytes()
        if b"\n@kernel" in content or b"\n@inlined" in content or path == Path(__file__):
            digest.update(content)
    root = os.environ.get("NUMBA_CACHE_DIR") or _FOLDER / "__pycache__"
    return Path(root) / f"kernels-{digest.hexdigest()}"


def _without_extensions() -> None:
    """Keeps numba, when it runs its first kernel, from importing what no kernel here uses, half a second of CPU: what
    other packages register with it (awkward does), and scipy's linear algebra."""
    numba.core.entrypoints._already_initialized = True
    scipy = "scipy.linalg.cython_blas"
    if sys.modules.setdefault(scipy, None) is None:
        importlib.import_module("numba.np.arraymath")  # looks for it
        del sys.modules[scipy]


_without_extensions()
numba.config.CACHE_DIR = str(_cache_folder())

kernel = numba.njit(cache=True, nogil=True)
inlined = numba.njit(cache=True, nogil=True, inline="always")
