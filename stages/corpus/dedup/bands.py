"""Save the links of each LSH band to disk, so that bands can run on different machines."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stages.contract.params import Dedup
from stages.corpus.dedup.collection import Collection
from stages.corpus.dedup.duplicates import exact_duplicates, link_band
from stages.corpus.reading.aside import aside, intact

LINKS = "links.npy"


def save_bands(corpus: Collection, bands: Iterable[int], params: Dedup, at_once: int, folder: Path) -> None:
    """Link the ``bands`` that ``folder`` does not have yet, for `load_band`; other arguments as `find_duplicates`."""
    folder.mkdir(parents=True, exist_ok=True)
    exact = exact_duplicates(corpus.hashes)
    for band in bands:
        if not intact(target := _path(folder, band)):
            root = np.arange(len(exact), dtype=np.int64)
            link_band(corpus, band, exact, params, at_once, root)
            with aside(target) as made:
                np.save(made / LINKS, root, allow_pickle=False)


def load_band(folder: Path, band: int) -> np.ndarray | None:
    """Return the links of a band, int64 (documents,): another document of the cluster, or the document itself.

    None: there is no such file, or it is damaged.
    """
    path = _path(folder, band)
    return np.load(path / LINKS, mmap_mode="r", allow_pickle=False) if intact(path) else None


def _path(folder: Path, band: int) -> Path:
    return folder / f"{band:03}"
