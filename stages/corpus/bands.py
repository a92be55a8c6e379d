"""What the bands of the min-hash signatures link, each kept in a file, where they are looked at apart."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stages.contract.params import Dedup
from stages.corpus.collection import Collection
from stages.corpus.duplicates import link_band, twins


def save_bands(corpus: Collection, bands: Iterable[int], params: Dedup, at_once: int, folder: Path) -> None:
    """Writes what `load_band` reads, of those ``bands`` that are not there yet; arguments as `find_duplicates`."""
    folder.mkdir(parents=True, exist_ok=True)
    twin = twins(corpus.hashes)
    for band in bands:
        if not (target := _path(folder, band)).exists():
            root = np.arange(len(twin), dtype=np.int64)
            link_band(corpus.keys(band), twin, corpus.wordless, corpus.signatures, params.threshold, at_once, root)
            with target.with_suffix(".tmp").open("wb") as f:
                np.save(f, root, allow_pickle=False)
                f.flush()
                os.fsync(f.fileno())
            target.with_suffix(".tmp").rename(target)


def load_band(folder: Path, band: int) -> np.ndarray | None:
    """int64 (documents,): of each another of its cluster, or itself; None: the band was not looked at."""
    path = _path(folder, band)
    return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None


def _path(folder: Path, band: int) -> Path:
    return folder / f"{band:03}.npy"
