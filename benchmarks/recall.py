"""How well near-duplicates are found, from what each program kept: recall by Jaccard similarity, and precision.

Theory: two documents of similarity J share a band of r rows out of b with probability 1 - (1 - J^r)^b (Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, 3.4.2).
"""

import json
import random
import re
from collections import defaultdict
from pathlib import Path

import orjson

NGRAM, BANDS, ROWS = 5, 14, 8
EDGES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)
WORDS = re.compile(r"\w+")
SAMPLE = 400  # removed documents whose nearest neighbour is looked for


def shingles(text: str) -> set[int]:
    words = WORDS.findall(text.lower())
    return {hash(tuple(words[k : k + NGRAM])) for k in range(max(1, len(words) - NGRAM + 1))}


def texts(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted((folder / "docs").iterdir()):
        with path.open("rb") as f:
            found |= {record["id"]: record["text"] for record in map(orjson.loads, f)}
    return found


def jaccard(one: set, other: set) -> float:
    return len(one & other) / max(1, len(one | other))


def recall(folder: Path, given: dict[str, str], kept: set[str]) -> list[tuple[str, int, float, float]]:
    """(bin, labelled pairs in it, share of which not both were kept, what theory expects of those pairs)."""
    bins = defaultdict(list)
    for original, copy in json.loads((folder / "pairs.json").read_text()):
        similarity = jaccard(shingles(given[original]), shingles(given[copy]))
        k = sum(similarity >= edge for edge in EDGES) - 1
        if k >= 0:
            bins[k].append((similarity, not (original in kept and copy in kept)))
    rows = []
    for k, found in sorted(bins.items()):
        expected = sum(1 - (1 - similarity**ROWS) ** BANDS for similarity, _ in found) / len(found)
        share = sum(gone for _, gone in found) / len(found)
        rows.append((f"{EDGES[k]:.1f}-{min(1.0, EDGES[k + 1]):.1f}", len(found), share, expected))
    return rows


def precision(given: dict[str, str], kept: set[str], least: float = 0.5) -> float:
    """Share of a sample of the removed documents to which another document is similar by at least ``least``."""
    removed = sorted(given.keys() - kept)
    sample = random.Random(0).sample(removed, min(SAMPLE, len(removed)))
    sets = {name: shingles(given[name]) for name in sample}
    holders = defaultdict(list)
    for name, found in sets.items():
        for shingle in found:
            holders[shingle].append(name)
    best = dict.fromkeys(sample, 0.0)
    for name, text in given.items():
        found, shared = shingles(text), defaultdict(int)
        for shingle in found & holders.keys():
            for other in holders[shingle]:
                shared[other] += 1
        for other, count in shared.items():
            if other != name:
                best[other] = max(best[other], count / (len(found) + len(sets[other]) - count))
    return sum(similarity >= least for similarity in best.values()) / max(1, len(sample))


def survivors(work: Path) -> tuple[int, int]:
    """Clusters that the stage dedup found, and those of which exactly one document was kept."""
    import pyarrow.parquet as pq

    kept = set(pq.read_table(work / "out/dedup/documents.parquet", columns=["id"])["id"].to_pylist())
    gone = pq.read_table(work / "out/dedup/duplicates.parquet", columns=["id", "kept_id", "cluster"]).to_pylist()
    clusters = defaultdict(set)
    for row in gone:
        clusters[row["cluster"]] |= {row["id"], row["kept_id"]}
    return len(clusters), sum(len(members & kept) == 1 for members in clusters.values())
