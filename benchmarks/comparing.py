"""The comparisons of benchmarks.data: each part runs our program and its peers' on one corpus and yields what it found.

Every program is a process of its own, from documents on disk to a result on disk, imports included.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from benchmarks import recall
from benchmarks.data_ours import PLACE, ROOT, ROW, VOCABULARY, place
from benchmarks.measuring import Taken, measured

STAGES = ("dedup", "filter", "tokenizer", "pack")
PEERS = {
    "datatrove": ["datatrove[io,processing]==0.10.1", "spacy==3.8.*", "tokenizers==0.23.3", "orjson"],
    "text-dedup": ["text-dedup==0.4.1"],
    "rensa": ["rensa==0.5.0", "orjson"],
}
SPACY_AT = "S"  # datatrove's own tokens take five times as long; cost is linear
DATATROVE = "datatrove 0.10.1"
THEIRS = {"dedup": f"{DATATROVE}, MinHash", "filter": f"{DATATROVE}, the same tokens",
          "tokens": f"{DATATROVE}, DocumentTokenizer"}  # fmt: skip


class Corpus(NamedTuple):
    work: Path
    size: str

    @property
    def folder(self) -> Path:
        return self.work / self.size

    @property
    def mb(self) -> float:
        return sum(path.stat().st_size for path in (self.folder / "docs").iterdir()) / 1e6


class Row(NamedTuple):
    """CPU-seconds, bytes at the peak, seconds, how many times ours that is, how many it must be, and what else there
    is to say; 0: not measured, or nothing to compare with."""

    name: str
    cpu: float = 0
    peak: int = 0
    wall: float = 0
    ratio: float = 0
    bar: float = 0
    note: str = ""


def row(name: str, taken: Taken, ours: Taken | None = None, bar: float = 0, note: str = "") -> Row:
    return Row(name, taken.cpu, taken.peak, taken.wall, taken.cpu / ours.cpu if ours else 0, bar, note)


def run(corpus: Corpus, name: str, command: list, cwd: Path | None = None, peer: str = "") -> Taken:
    """What a Python ``command`` takes, in the environment of a ``peer`` or in this one."""
    python = corpus.work / "peers" / peer / "bin" / "python" if peer else sys.executable
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"} | ({} if peer else {"PYTHONPATH": str(ROOT)})
    return measured([str(python), *map(str, command)], corpus.folder / f"{name}.log", cwd, env)


def stage(corpus: Corpus, name: str, work: Path) -> Taken:
    return run(corpus, f"{work.name}-{name}", ["-m", "benchmarks.survival", "stage", name, 0], work)


def ours(corpus: Corpus, program: str) -> Taken:
    return run(corpus, f"ours-{program}", ["-m", "benchmarks.data_ours", program, corpus.folder])


def thrice(program: Callable[[], Taken]) -> Taken:
    """The middle one of three runs: ours take seconds, and one disturbance would move every ratio."""
    return _middle([program() for _ in range(3)])


def theirs(corpus: Corpus, program: str, *arguments: object, peer: str = "") -> Taken:
    script = ROOT / "benchmarks" / "data_peers.py"
    return run(corpus, f"{program}-{len(arguments)}", [script, program, corpus.folder, *arguments], peer=peer)


def compile_kernels(corpus: Corpus) -> None:
    """What happens once a machine is not measured."""
    work = place(corpus.folder, "ours-compile")
    for name in STAGES:
        stage(corpus, name, work)


def dedup(corpus: Corpus) -> Iterator[Row]:
    folder, work = corpus.folder, corpus.folder / "ours-dedup"
    own = thrice(lambda: stage(corpus, "dedup", place(folder, "ours-dedup")))
    clusters, single = recall.survivors(work)
    yield row("dedup, this stage", own, note=f"exactly one document stays of {single:,} of {clusters:,} clusters")
    kept = {"this stage": _parquet(work / "out/dedup/documents.parquet")}
    taken = theirs(corpus, "rensa", peer="rensa")
    kept["rensa"] = set((folder / "rensa.kept").read_text().splitlines())
    yield row("rensa 0.5.0, RMinHash exact", taken, own, 3.5)
    taken = theirs(corpus, "datatrove_dedup", peer="datatrove")
    kept["datatrove"] = _jsonl(folder / "datatrove" / "kept")
    yield row(THEIRS["dedup"], taken, own, 80)
    taken = theirs(corpus, "text_dedup", peer="text-dedup")
    kept["text-dedup"] = _dataset(folder / "text-dedup")
    yield row("text-dedup 0.4.1, MinHash", taken, own, 25)
    texts = recall.read_texts(folder)
    pairs = recall.labelled(folder, texts)
    right = recall.precision(texts, {name: texts.keys() - found for name, found in kept.items()})
    for name, found in kept.items():
        bins, lost = recall.recall(pairs, found)
        off = max(abs(one.found - one.theory) for one in bins)
        told = "  ".join(f"{b.label}: {b.found:.3f} ({b.theory:.3f}, {b.pairs:,})" for b in bins)
        yield Row(f"  {name}", note=f"kept {len(found):,} of {len(texts):,}, precision {right[name]:.3f}, "
                  f"off theory by {off:.3f} at most, both gone of {lost:,} pairs; recall by Jaccard (theory, pairs)  "
                  f"{told}")  # fmt: skip


def filters(corpus: Corpus) -> Iterator[Row]:
    _table(corpus)
    table, work = corpus.folder / "all.parquet", corpus.folder / "ours-filter"
    own = thrice(lambda: stage(corpus, "filter", place(corpus.folder, "ours-filter", table)))
    yield row("filter, this stage: Gopher, C4, FineWeb", own)
    kept, total = _parquet(work / "out/filter/documents.parquet"), len(_parquet(table))
    for tokens, name, bar in (("ours", THEIRS["filter"], 40), ("spacy", f"{DATATROVE}, its spaCy tokens", 10)):
        if tokens == "ours" or corpus.size == SPACY_AT:
            taken = theirs(corpus, "datatrove_filter", tokens, peer="datatrove")
            same = 1 - len(kept ^ _jsonl(corpus.folder / f"datatrove-{tokens}")) / total
            yield row(name, taken, own, bar, f"decisions equal {same:.3%}")


def tokens(corpus: Corpus) -> Iterator[Row]:
    _table(corpus)
    place(corpus.folder, PLACE)
    trained = thrice(lambda: ours(corpus, "train"))
    yield row(f"BPE of {VOCABULARY:,}, this stage's", trained)
    hf = theirs(corpus, "hf_train", VOCABULARY)
    encoded = thrice(lambda: ours(corpus, "encode"))
    yield row("encoding to disk, as the stage pack does", encoded, note=f"{encoded.said['tokens']:,} tokens")
    tokenizer = corpus.folder / PLACE / "out" / "tokenizer" / "tokenizer.json"
    taken = theirs(corpus, "datatrove_tokens", tokenizer, peer="datatrove")
    found = ours(corpus, "compare").said
    merges = f"{found['merges']:,} merges {'identical' if found['same'] else 'DIFFER'}"
    ids = f"ids of {found['documents'] - found['differ']:,} of {found['documents']:,} documents identical"
    yield row(f"tokenizers {version('tokenizers')}, BpeTrainer", hf, trained, 5, merges)
    yield row(THEIRS["tokens"], taken, encoded, 20, ids)


def packs(corpus: Corpus) -> Iterator[Row]:
    """CPU-seconds of the function alone, measured inside the process: reading tokens to memory is no part of it."""
    if not (corpus.folder / PLACE / "tokens" / "tokens.bin").exists():
        list(tokens(corpus))
    ours(corpus, "dataset")
    # Both three times: memory that the machine has not given to anybody yet costs as much again, and more.
    own, trl = (_middle([program() for _ in range(3)], "memory")
                for program in (lambda: ours(corpus, "pack"), lambda: theirs(corpus, "trl_pack")))  # fmt: skip
    filled, lost = trl.said["tokens"] / (trl.said["rows"] * ROW), own.said["tokens"] - trl.said["tokens"]
    for name, what in (("memory", "of tokens in memory"), ("disk", "from disk to disk")):
        note = f"{own.said['rows']:,} rows of {ROW}, filled {own.said['filled']:.3%}, {own.said['lost']:,} tokens lost"
        yield Row(f"packing {what}", own.said[name], own.peak, note=note)
        note = f"bfd_split, {trl.said['rows']:,} rows, filled {filled:.3%}, {lost:,} tokens lost"
        ratio = trl.said[name] / own.said[name]
        yield Row(f"TRL {version('trl')}, {what}", trl.said[name], trl.peak, 0, ratio, 15, note)


def chain(corpus: Corpus) -> Iterator[Row]:
    """The stages one after another, against what datatrove's took in the other parts, of as much as reaches each."""
    limit, taken = _gzip(corpus), _chain(corpus)
    work = corpus.folder / "ours-chain"
    yield Row("decoding gzip, by Python", note=f"{limit:.0f} MB/CPU-s: what a corpus from elsewhere costs first")
    for name in STAGES:
        share = corpus.mb / taken[name].cpu / limit
        yield row(f"the chain's {name}", taken[name], note=f"{share:.0%} of the speed of decoding gzip")
    cpu, wall = (sum(getattr(one, of) for one in taken.values()) for of in ("cpu", "wall"))
    peak = max(one.peak for one in taken.values())
    note = f"{corpus.mb / cpu / limit:.0%} of the speed of decoding gzip"
    yield Row("the whole chain", cpu, peak, wall, note=note)
    left = [_bytes(work / f"out/{name}/documents.parquet") / _bytes(corpus.folder / "all.parquet")
            for name in ("dedup", "filter")]  # fmt: skip
    found = {one.name: one for part in THEIRS for one in saved(corpus, part)}
    if missing := [part for part, name in THEIRS.items() if name not in found]:
        yield Row(f"{DATATROVE}'s stages", note=f"measured by the parts {', '.join(missing)}, which have not run")
        return
    shares = dict(zip(THEIRS, (1, *left), strict=True))
    total, seconds = (sum(getattr(found[THEIRS[part]], of) * shares[part] for part in THEIRS) for of in ("cpu", "wall"))
    peak = max(found[THEIRS[part]].peak for part in THEIRS)
    note = f"without BPE training and packing; of what reaches it, filter {left[0]:.0%}, tokens {left[1]:.0%} of theirs"
    yield Row(f"{DATATROVE}: dedup, filter, tokens", total, peak, seconds, total / cpu, 40, note)


PARTS = {"dedup": dedup, "filter": filters, "tokens": tokens, "pack": packs, "chain": chain}


def _chain(corpus: Corpus) -> dict[str, Taken]:
    """What each stage takes, the middle one of three."""
    runs: dict[str, list[Taken]] = {name: [] for name in STAGES}
    for _ in range(3):
        work = place(corpus.folder, "ours-chain")
        for name in STAGES:
            runs[name].append(stage(corpus, name, work))
    return {name: _middle(taken) for name, taken in runs.items()}


def _middle(runs: list[Taken], said: str = "") -> Taken:
    return sorted(runs, key=lambda taken: taken.said[said] if said else taken.cpu)[len(runs) // 2]


def saved(corpus: Corpus, part: str) -> list[Row]:
    """The rows of a part that was measured as a whole, or none."""
    path = corpus.folder / f"rows-{part}.json"
    return [Row(*values) for values in json.loads(path.read_text())] if path.exists() else []


def save(corpus: Corpus, part: str, rows: list[Row]) -> None:
    (corpus.folder / f"rows-{part}.json").write_text(json.dumps(rows))


def _gzip(corpus: Corpus) -> float:
    """MB of text a CPU-second."""
    source, path = sorted((corpus.folder / "docs").iterdir())[0], corpus.folder / "part.jsonl.gz"
    if not path.exists():
        with path.open("wb") as out:
            subprocess.run(["gzip", "-6", "-c", source], stdout=out, check=True)
    program = f"import gzip\nwith gzip.open({str(path)!r}) as f:\n while f.read(1 << 20): pass"
    return source.stat().st_size / 1e6 / run(corpus, "gzip", ["-c", program]).cpu


def _table(corpus: Corpus) -> None:
    if not (corpus.folder / "all.parquet").exists():
        ours(corpus, "table")


def _parquet(path: Path) -> set[str]:
    import pyarrow.parquet as pq

    return set(pq.read_table(path, columns=["id"])["id"].to_pylist())


def _bytes(path: Path) -> int:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    return pc.sum(pc.binary_length(pq.read_table(path, columns=["text"])["text"])).as_py()


def _jsonl(folder: Path) -> set[str]:
    return {json.loads(line)["id"] for path in folder.glob("*.jsonl") for line in path.open("rb")}


def _dataset(folder: Path) -> set[str]:
    from datasets import load_from_disk

    return set(load_from_disk(str(folder))["id"])
