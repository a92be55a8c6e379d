"""How every numba kernel here is compiled: without the GIL, for plain threads, cached on disk.

numba's own threads (parallel=True) are not used: they raced on scratch arrays and cannot be cached.
"""

import hashlib
import os
from pathlib import Path

import numba

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


numba.config.CACHE_DIR = str(_cache_folder())

kernel = numba.njit(cache=True, nogil=True)
inlined = numba.njit(cache=True, nogil=True, inline="always")
