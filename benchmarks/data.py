"""The data engine beside its peers: CPU-seconds, memory, and whether what comes out is as good.

    python -m benchmarks.data WORK BENCH [dedup filter tokens pack chain] [--sizes S M L] [--cached]

WORK is a folder for 20 GB of corpora, environments and results; BENCH one with pretrain_*.jsonl.zst (id, text), to
which documentation from Debian is added: 63, 249 and 496 MB of JSONL. Every program is a process of its own, from
documents on disk to a result on disk; CPU-seconds are user and system time of it and all it started, imports included,
compiling of kernels, once a machine, not. With --cached what was measured before is not measured again. About an hour
on two cores for everything.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import corpora, recall
from benchmarks.data_ours import ROOT, ROW, place
from benchmarks.measuring import Taken, measured

PARTS = ("dedup", "filter", "tokens", "pack", "chain")
SPACY_AT = "S"  # datatrove's default tokens are slow, and linear
PEERS = {
    "datatrove": ("3.12", ["datatrove[io,processing]==0.10.1", "spacy==3.8.*", "tokenizers==0.23.3", "orjson"]),
    "text-dedup": ("3.12", ["text-dedup==0.4.1"]),
    "rensa": ("3.12", ["rensa==0.5.0", "orjson"]),
}
BARS = {
    "datatrove dedup": 80, "text-dedup": 25, "rensa": 3.5, "datatrove filter": 40, "datatrove filter, its tokens": 10,
    "datatrove tokens": 20, "HF training": 5, "TRL": 15, "chain": 40,
}  # fmt: skip


class Bench:
    """Where it happens, and what was measured so far."""

    def __init__(self, work: Path, size: str, cached: bool):
        self.work, self.size, self.cached = work, size, cached
        self.folder = work / size
        self.mb = sum(path.stat().st_size for path in (self.folder / "docs").iterdir()) / 1e6

    def run(self, name: str, command: list[str], cwd: Path | None = None, peer: str = "") -> Taken:
        python = self.work / "peers" / peer / "bin" / "python" if peer else Path(sys.executable)
        variables = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        env = os.environ | variables | ({} if peer else {"PYTHONPATH": str(ROOT)})
        note = self.folder / f"{name}.json".replace(" ", "-")
        return measured(note, self.cached, [str(python), *command], cwd, env)

    def ours(self, name: str, program: str) -> Taken:
        return self.run(f"ours {name}", ["-m", "benchmarks.data_ours", program, str(self.folder)])

    def stage(self, name: str, work: Path) -> Taken:
        command = ["-m", "benchmarks.survival", "stage", name, "0"]
        return self.run(f"{work.name} {name}", command, work)

    def peer(self, name: str, peer: str, program: str, *arguments: str) -> Taken:
        script = str(ROOT / "benchmarks" / "data_peers.py")
        return self.run(name, [script, program, str(self.folder), *arguments], peer=peer)

    def told(self, name: str, taken: Taken, ours: Taken | None = None, bar: str = "", note: str = "") -> None:
        ratio = f"{taken.cpu / ours.cpu:6.1f}x" if ours else "       "
        ratio += f" (bar {BARS[bar]:g}: {'met' if taken.cpu / ours.cpu >= BARS[bar] else 'NOT met'})" if bar else ""
        print(
            f"  {self.size}  {name:38} {taken.cpu:8.1f} CPU-s {self.mb / taken.cpu:7.1f} MB/CPU-s "
            f"{taken.peak / 2**20:6.0f} MiB  {ratio} {note}".rstrip(),
            flush=True,
        )


def warm(b: Bench) -> None:
    """Compile the kernels."""
    work = place(b.folder, "ours-warm")
    for name in ("dedup", "filter", "tokenizer", "pack"):
        b.stage(name, work)


def dedup(b: Bench) -> None:
    work = place(b.folder, "ours-dedup")
    ours = b.stage("dedup", work)
    b.told("dedup, this stage", ours)
    clusters, single = recall.survivors(work)
    given = recall.texts(b.folder)
    _quality(b, "ours", given, _parquet(work / "out/dedup/documents.parquet"))
    print(f"  {b.size}  clusters {clusters:,}, of which exactly one document was kept {single:,}", flush=True)
    rensa = b.peer("rensa", "rensa", "rensa")
    b.told("rensa 0.5.0, RMinHash exact", rensa, ours, "rensa")
    _quality(b, "rensa", given, set((b.folder / "rensa.kept").read_text().splitlines()))
    theirs = b.peer("datatrove dedup", "datatrove", "datatrove_dedup")
    b.told("datatrove 0.10.1, MinHash", theirs, ours, "datatrove dedup")
    _quality(b, "datatrove", given, _jsonl(b.folder / "datatrove" / "kept"))
    theirs = b.peer("text-dedup", "text-dedup", "text_dedup")
    b.told("text-dedup 0.4.1, MinHash", theirs, ours, "text-dedup")
    _quality(b, "text-dedup", given, _dataset(b.folder / "text-dedup"))


def _quality(b: Bench, name: str, given: dict[str, str], kept: set[str]) -> None:
    rows = recall.recall(b.folder, given, kept)
    bins = "  ".join(f"{label} {share:.3f} ({expected:.3f}, {count})" for label, count, share, expected in rows)
    worst = max(abs(share - expected) for _, _, share, expected in rows)
    right = f", precision {recall.precision(given, kept):.3f}" if b.size == "S" else ""
    print(f"     {name} kept {len(kept):,} of {len(given):,}{right}; recall (theory, pairs) by Jaccard {bins}")
    print(f"     {name} is off by {worst:.3f} at most", flush=True)


def filters(b: Bench) -> None:
    _table(b)
    work = place(b.folder, "ours-filter", b.folder / "all.parquet")
    (work / "out" / "filter" / "documents.parquet").unlink(missing_ok=True)
    ours = b.stage("filter", work)
    b.told("filter, this stage, Gopher, C4, FineWeb", ours)
    kept = _parquet(work / "out/filter/documents.parquet")
    total = len(_parquet(b.folder / "all.parquet"))
    theirs = b.peer("datatrove filter", "datatrove", "datatrove_filter", "ours")
    same = 1 - len(kept ^ _jsonl(b.folder / "datatrove-ours")) / total
    b.told("datatrove 0.10.1, the same tokens", theirs, ours, "datatrove filter", f"decisions equal {same:.2%}")
    if b.size == SPACY_AT:
        theirs = b.peer("datatrove spacy", "datatrove", "datatrove_filter", "spacy")
        same = 1 - len(kept ^ _jsonl(b.folder / "datatrove-spacy")) / total
        name = "datatrove filter, its tokens"
        b.told("datatrove 0.10.1, its spaCy tokens", theirs, ours, name, f"decisions equal {same:.2%}")


def tokens(b: Bench) -> None:
    _table(b)
    place(b.folder, "ours")
    trained = b.ours("train", "train")
    b.told("BPE of 32,768, this stage's", trained)
    theirs = b.run("hf train", [str(ROOT / "benchmarks/data_peers.py"), "hf_train", str(b.folder), "32768"])
    encoded = b.ours("encode", "encode")
    compared = b.ours("compare", "compare").said
    same = f"merges {_equal(compared['merges'])} ({compared['count']:,})"
    b.told("tokenizers 0.23, BpeTrainer", theirs, trained, "HF training", same)
    b.told("encoding to disk, as the stage pack", encoded, note=f"{encoded.said['tokens']:,} tokens")
    tokenizer = str(b.folder / "ours" / "out" / "tokenizer" / "tokenizer.json")
    theirs = b.peer("datatrove tokens", "datatrove", "datatrove_tokens", tokenizer)
    count = encoded.said["tokens"] - encoded.said["documents"]  # a second mark, before each document
    same = f"ids {_equal(compared['ids'])}, tokens {_equal(count == theirs.said['tokens'])}"
    b.told("datatrove 0.10.1, DocumentTokenizer", theirs, encoded, "datatrove tokens", same)


def packs(b: Bench) -> None:
    if not (b.folder / "ours" / "tokens").exists():
        tokens(b)
    if not (b.folder / "tokens.arrow").exists():
        b.ours("dataset", "dataset")
    ours = b.ours("pack", "pack").said
    theirs = b.run("trl", [str(ROOT / "benchmarks/data_peers.py"), "trl_pack", str(b.folder)]).said
    print(f"  {b.size}  packing in rows of {ROW}: {ours['rows']:,} rows, filled {ours['filled']:.2%}, "
          f"{ours['lost']} tokens lost; TRL 1.16, bfd_split: {theirs['rows']:,} rows")  # fmt: skip
    for name, what in (("memory", "tokens in memory"), ("disk", "from disk to disk")):
        ratio = theirs[name] / ours[name]
        met = "met" if ratio >= BARS["TRL"] else "NOT met"
        print(f"     {what}: {ours[name]:.3f} CPU-s, TRL {theirs[name]:.2f}: {ratio:.1f}x (bar {BARS['TRL']}: {met})")


def chain(b: Bench) -> None:
    """dedup, filter, BPE, encoding and packing one after another; datatrove's stages on as much as reaches them."""
    work = place(b.folder, "ours-chain")
    taken = {name: b.stage(name, work) for name in ("dedup", "filter", "tokenizer", "pack")}
    for name, of in taken.items():
        b.told(f"the chain's {name}", of)
    ours = sum(of.cpu for of in taken.values())
    left = [_bytes(work / f"out/{stage}/documents.parquet") / (b.mb * 1e6) for stage in ("dedup", "filter")]
    notes = [b.folder / f"datatrove-{name}.json" for name in ("dedup", "filter", "tokens")]
    if not all(note.exists() for note in notes):
        return print("     datatrove's side: run dedup, filter and tokens first")
    parts = [Taken(*json.loads(note.read_text())).cpu for note in notes]
    theirs = parts[0] + parts[1] * left[0] + parts[2] * left[1]
    met = "met" if theirs / ours >= BARS["chain"] else "NOT met"
    shares = ", ".join(f"{share:.0%}" for share in left)
    print(f"  {b.size}  all four stages {ours:.1f} CPU-s, datatrove's three, of what reaches them ({shares} of it), "
          f"{theirs:.0f}: {theirs / ours:.1f}x (bar {BARS['chain']}: {met})")  # fmt: skip
    _limit(b)


def _limit(b: Bench) -> None:
    """Decoding gzip, which every corpus from elsewhere costs first."""
    path = b.folder / "part.jsonl.gz"
    if not path.exists():
        with path.open("wb") as out:
            source = sorted((b.folder / "docs").iterdir())[0]
            subprocess.run(["gzip", "-6", "-c", source], stdout=out, check=True)
    size = sorted((b.folder / "docs").iterdir())[0].stat().st_size / 1e6
    taken = b.run("gzip", ["-c", f"import gzip\nwith gzip.open({str(path)!r}) as f:\n while f.read(1 << 20): pass"])
    print(f"  {b.size}  decoding gzip by Python: {size / taken.cpu:.0f} MB/CPU-s", flush=True)


def _table(b: Bench) -> None:
    if not (b.folder / "all.parquet").exists():
        b.ours("table", "table")


def _equal(is_so: bool) -> str:
    return "identical" if is_so else "DIFFERENT"


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


def environments(work: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    for name, (version, packages) in PEERS.items():
        folder = work / "peers" / name
        if (folder / "ready").exists():
            continue
        print(f"installing {', '.join(packages)}", flush=True)
        subprocess.run([uv, "venv", "-q", "--clear", "--python", version, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", folder / "bin/python", *packages], check=True)
        (folder / "ready").touch()


def main(work: Path, bench: Path, parts: list[str], sizes: list[str], cached: bool) -> None:
    from importlib.metadata import version

    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{model[0].split(':')[1].strip() if model else 'CPU unknown'}, {len(os.sched_getaffinity(0))} cores; "
          + ", ".join(f"{name} {version(name)}" for name in ("numba", "gigatoken", "tokenizers", "trl")))  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    environments(work)
    corpora.make(work, bench)
    programs: dict[str, Callable] = {
        "dedup": dedup, "filter": filters, "tokens": tokens, "pack": packs, "chain": chain
    }  # fmt: skip
    if not cached:
        print("compiling the kernels", flush=True)
        warm(Bench(work, "S", cached))
    for part in parts:
        print(part, flush=True)
        for size in sizes:
            programs[part](Bench(work, size, cached))


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("bench", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=corpora.SHARES, default=list(corpora.SHARES))
    parser.add_argument("--cached", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    main(args.work.absolute(), args.bench.absolute(), args.parts or list(PARTS), args.sizes, args.cached)
