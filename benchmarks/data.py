"""The data engine beside its peers: CPU-seconds, memory, and whether what comes out is as good.

    python -m benchmarks.data WORK BENCH [dedup filter tokens pack chain] [--sizes S M L] [--cached]

WORK is a folder for 15 GB of corpora, environments and results; BENCH one with pretrain_*.jsonl.zst (id, text), to
which documentation from Debian is added: 70, 270 and 540 MB of JSONL. Every program is a process of its own, from
documents on disk to a result on disk; CPU-seconds are user and system time of it and all it started, imports included,
compiling of kernels, once a machine, not. A part runs ours three times, of which the middle one counts, and its peers
once (packing three times as well); with --cached a part that was measured before is printed and not run again. The
peers' environments need Python 3.12 on PATH. About 50 minutes on two cores that do nothing else.
"""

import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks import corpora
from benchmarks.comparing import PARTS, PEERS, Corpus, Row, compile_kernels, save, saved


def shown(corpus: Corpus, row: Row) -> str:
    figures = f"{row.cpu:8.2f} CPU-s {corpus.mb / row.cpu:8.1f} MB/CPU-s" if row.cpu else ""
    figures += f" {row.peak / 2**20:6.0f} MiB" if row.peak else ""
    figures += f" {row.wall:6.1f} s" if row.wall else ""
    if row.ratio:
        figures += f" {row.ratio:6.1f}x"
        figures += f" (at least {row.bar:g}: {'met' if row.ratio >= row.bar else 'NOT met'})" if row.bar else ""
    return f"  {corpus.size}  {row.name:42} {figures}  {row.note}".rstrip()


def measure(corpus: Corpus, part: str) -> list[Row]:
    begin, rows = time.monotonic(), []
    for row in PARTS[part](corpus):
        print(shown(corpus, row), flush=True)
        rows.append(row)
    save(corpus, part, rows)
    print(f"     ({part} of {corpus.mb:.0f} MB took {(time.monotonic() - begin) / 60:.1f} minutes)", flush=True)
    return rows


def growth(costs: dict[float, float]) -> str:
    """CPU-seconds of our program by MB: whether as much is added for a byte at every size."""
    (mb, cpu), *more = sorted(costs.items())
    steps = []
    for next_mb, next_cpu in more:
        steps.append(f"{1000 * (next_cpu - cpu) / (next_mb - mb):.1f} from {mb:.0f} to {next_mb:.0f} MB")
        mb, cpu = next_mb, next_cpu
    return f"     CPU-seconds for another GB: {', '.join(steps)}"


def environments(work: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    for name, packages in PEERS.items():
        folder = work / "peers" / name
        if not (folder / "ready").exists():
            print(f"installing {', '.join(packages)}", flush=True)
            subprocess.run([uv, "venv", "-q", "--clear", "--python", "3.12", folder], check=True)
            install = [uv, "pip", "install", "-q", "--compile-bytecode", "--python", folder / "bin" / "python"]
            subprocess.run([*install, *packages], check=True)
            (folder / "ready").touch()


def main(work: Path, bench: Path, parts: list[str], sizes: list[str], cached: bool) -> None:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{model[0].split(':')[1].strip() if model else 'CPU unknown'}, {len(os.sched_getaffinity(0))} cores; "
          + ", ".join(f"{name} {version(name)}" for name in ("numba", "gigatoken", "tokenizers", "trl")))  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    environments(work)
    corpora.make(work, bench)
    known = {(part, size): saved(Corpus(work, size), part) if cached else [] for part in parts for size in sizes}
    if not all(known.values()):
        print("compiling the kernels", flush=True)
        compile_kernels(Corpus(work, "S"))
    for part in parts:
        print(part, flush=True)
        costs = {}
        for size in sizes:
            corpus, rows = Corpus(work, size), known[part, size]
            for row in rows:
                print(shown(corpus, row))
            rows = rows or measure(corpus, part)
            costs[corpus.mb] = next(row.cpu for row in rows if row.cpu)
        if len(costs) > 1 and part in ("dedup", "filter"):
            print(growth(costs), flush=True)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("bench", type=Path)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=corpora.SIZES, default=list(corpora.SIZES))
    parser.add_argument("--cached", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not list(args.bench.glob("pretrain_*.jsonl.zst")):
        parser.error(f"{args.bench} has no pretrain_*.jsonl.zst")
    main(args.work.absolute(), args.bench.absolute(), args.parts or list(PARTS), args.sizes, args.cached)
