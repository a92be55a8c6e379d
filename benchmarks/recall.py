"""How well near-duplicates are found, judged by what each program kept.

Theory: two documents of Jaccard similarity J share one of b bands of r rows with probability 1 - (1 - J^r)^b (Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, 3.4.2).
"""

import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

NGRAM, BANDS, ROWS = 5, 14, 8
EDGES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)
LEAST = 0.5  # similarity from which a removal was right
SAMPLE = 400  # removed documents whose nearest neighbour is looked for
WORDS = re.compile(r"\w+")


class Bin(NamedTuple):
    label: str
    pairs: int
    found: float  # share of the pairs
    theory: float


def read_texts(folder: Path) -> dict[str, str]:
    """The documents of a corpus by id."""
    found = {}
    for path in sorted((folder / "docs").iterdir()):
        with path.open("rb") as f:
            found |= {record["id"]: record["text"] for record in map(orjson.loads, f)}
    return found


def shingles(text: str) -> np.ndarray:
    """uint64, sorted: a hash for each different run of NGRAM words; of all words, where there are fewer."""
    words = np.array([hash(word) for word in WORDS.findall(text.lower())], np.int64).view(np.uint64)
    n = min(NGRAM, len(words))
    found = np.zeros(len(words) - n + 1, np.uint64)
    for k in range(n):
        found = (found + words[k : len(words) - n + 1 + k]) * np.uint64(0x9E3779B97F4A7C15)
        found ^= found >> np.uint64(29)
    return np.unique(found)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def labelled(folder: Path, texts: dict[str, str]) -> list[tuple[str, str, float]]:
    """(document, its copy, their similarity) of what `corpora` put into the corpus."""
    pairs = json.loads((folder / "pairs.json").read_text())
    return [(one, other, jaccard(shingles(texts[one]), shingles(texts[other]))) for one, other in pairs]


def recall(pairs: list[tuple[str, str, float]], kept: set[str]) -> tuple[list[Bin], int]:
    """By similarity, of how many pairs not both documents were kept; and of how many pairs neither was."""
    bins, lost = defaultdict(list), 0
    for one, other, similarity in pairs:
        both = (one in kept) + (other in kept)
        lost += both == 0
        if similarity >= EDGES[0]:
            bins[sum(similarity >= edge for edge in EDGES) - 1].append((both < 2, similarity))
    rows = []
    for k, found in sorted(bins.items()):
        theory = np.mean([1 - (1 - similarity**ROWS) ** BANDS for _, similarity in found])
        label = f"{EDGES[k]:.1f}-{min(1.0, EDGES[k + 1]):.1f}"
        rows.append(Bin(label, len(found), float(np.mean([gone for gone, _ in found])), float(theory)))
    return rows, lost


def precision(texts: dict[str, str], removed: dict[str, set[str]]) -> dict[str, float]:
    """For each program, the share of a sample of what it removed that another document of all is similar to."""
    rng = random.Random(0)
    samples = {name: rng.sample(sorted(gone), min(SAMPLE, len(gone))) for name, gone in removed.items()}
    sets = {name: shingles(texts[name]) for sample in samples.values() for name in sample}
    names = list(sets)
    owners = np.repeat(np.arange(len(names)), [len(found) for found in sets.values()])
    wanted = np.concatenate([*sets.values(), np.zeros(0, np.uint64)])
    order = np.argsort(wanted, kind="stable")
    wanted, owners = wanted[order], owners[order]
    best = dict.fromkeys(names, 0.0)
    for name, text in texts.items():
        found = shingles(text)
        first, last = (np.searchsorted(wanted, found, side) for side in ("left", "right"))
        shared = Counter()
        for k in np.flatnonzero(first < last):
            shared.update(owners[first[k] : last[k]].tolist())
        for owner, count in shared.items():
            other = names[owner]
            if other != name:
                best[other] = max(best[other], count / (len(found) + len(sets[other]) - count))
    return {name: sum(best[one] >= LEAST for one in sample) / max(1, len(sample)) for name, sample in samples.items()}


def survivors(place: Path) -> tuple[int, int]:
    """Clusters that the stage dedup found, and those of which exactly one document was kept."""
    import pyarrow.parquet as pq

    kept = set(pq.read_table(place / "out/dedup/documents.parquet", columns=["id"])["id"].to_pylist())
    gone = pq.read_table(place / "out/dedup/duplicates.parquet", columns=["id", "kept_id", "cluster"]).to_pylist()
    clusters = defaultdict(set)
    for row in gone:
        clusters[row["cluster"]] |= {row["id"], row["kept_id"]}
    return len(clusters), sum(len(members & kept) == 1 for members in clusters.values())
