"""Whether the data stages keep what they promise on a corpus larger than their memory.

    python -m benchmarks.survival FOLDER

Makes JSONL in FOLDER (4.3 GB, and 67 MB): words of the shipped corpus in any order, about 2.5 kB a document, every
tenth nearly a copy, every thousandth line malformed. Takes it through dedup, filter, tokenizer and pack. Prints what
time and memory four times dedup.memory_gib takes; whether the bytes are the same with 1, 2 and 4 workers, with the
documents dealt into other files, and after kill -9 at ten random moments of the chain. Some forty minutes on two cores.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("dedup", "filter", "tokenizer", "pack")
MEMORY = 1.0  # GiB
KILLS = 10


def corpus(folder: Path, size: float, files: int = 4) -> None:
    """About ``size`` bytes of JSONL in ``folder``."""
    import orjson

    from stages.contract.params import load_params
    from stages.corpus.reading.documents import read_documents

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    texts = read_documents(load_params(ROOT / "params.yaml").data.pretrain).table["text"].to_pylist()
    vocabulary = [word for text in texts for word in text.split() if word.isascii()]
    for part in range(files):
        with (folder / f"{part}.jsonl").open("wb") as f:
            written = number = 0
            while written < size / files:
                words = [vocabulary[k] for k in rng.integers(len(vocabulary), size=400)]
                for copy in range(1 + (number % 10 == 0)):
                    words[10 * copy] = "other"
                    record = {"id": f"{part}-{number}-{copy}", "text": " ".join(words), "source": "made"}
                    written += f.write(orjson.dumps(record) + b"\n")
                if number % 1000 == 0:
                    f.write(b'{"id": "malformed", "text": "cut\n')
                number += 1


def deal(given: Path, folder: Path) -> None:
    """The lines of ``given`` in another order in other files."""
    folder.mkdir()
    lines = [line for path in sorted(given.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    order = np.random.default_rng(1).permutation(len(lines))
    for part, chosen in enumerate(np.array_split(order, 7)):
        (folder / f"part-{part}.jsonl").write_bytes(b"".join(lines[k] + b"\n" for k in chosen))


def start(work: Path, given: Path, workers: int = 0) -> subprocess.Popen:
    """The stages on ``given`` in ``work``, where they may have been before; a process group of their own."""
    from ruamel.yaml import YAML

    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text())
    for name, source in params["data"].items():
        params["data"][name]["path"] = str(ROOT / source["path"])
    params["data"]["pretrain"] = {"path": str(given.absolute()), "files": "*.jsonl"}
    params["dedup"].update(memory_gib=MEMORY, against="none")
    work.mkdir(parents=True, exist_ok=True)
    with (work / "params.yaml").open("w") as f:
        yaml.dump(params, f)
    command = [sys.executable, "-m", "benchmarks.survival", "chain", str(workers)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"RAYON_NUM_THREADS": str(workers)} if workers else {})
    return subprocess.Popen(
        command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def chain(workers: int) -> None:
    """Each stage in a process; one that is done is not run again, as DVC does it. Prints what each took."""
    Path("done").mkdir(exist_ok=True)
    for name in STAGES:
        if not (done := Path("done") / name).exists():
            command = [sys.executable, "-m", "benchmarks.survival", "stage", name, str(workers)]
            said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            done.with_suffix(".tmp").write_text(said.splitlines()[-1])
            shutil.rmtree(Path("scratch") / name)
            done.with_suffix(".tmp").rename(done)
    print(json.dumps({name: json.loads((Path("done") / name).read_text()) for name in STAGES}))


def stage(name: str, workers: int) -> None:
    """All that the stage does but DVC's bookkeeping and the tracker's."""
    from importlib import import_module

    from stages.contract import Run
    from stages.contract.params import load_params
    from stages.contract.tracking.spool import NoSpool

    if workers:
        os.sched_getaffinity = lambda _: range(workers)
    folders = [Path(top) / name for top in ("out", "reports", "scratch")]
    for folder in folders[:2]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    import_module(f"stages.{name}").main(Run(name, load_params(), *folders, NoSpool()))
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    seconds = time.monotonic() - begin
    print(json.dumps({"cpu": time.process_time(), "seconds": seconds, "peak": 1024 * int(peak)}))


def finish(process: subprocess.Popen) -> dict[str, dict]:
    said = process.communicate()[0]
    if process.returncode:
        sys.exit(f"a stage failed:\n{said}")
    return json.loads(said.splitlines()[-1])


def digest(work: Path) -> str:
    """Of all that the stages wrote but where malformed lines were."""
    paths = sorted(path for top in ("out", "reports") for path in (work / top).rglob("*") if path.is_file())
    found = hashlib.sha256()
    for path in paths:
        if path.name != "rejected.jsonl":
            found.update(str(path.relative_to(work)).encode())
            with path.open("rb") as f:
                found.update(hashlib.file_digest(f, "sha256").digest())
    return found.hexdigest()


def size(given: Path) -> int:
    return sum(path.stat().st_size for path in given.iterdir())


def main(folder: Path) -> None:
    large, small, dealt = folder / "large", folder / "small", folder / "dealt"
    if not dealt.exists():
        corpus(large, 4 * MEMORY * 2**30)
        corpus(small, MEMORY * 2**30 / 16)
        deal(small, dealt)
    shutil.rmtree(folder / "work", ignore_errors=True)
    finish(start(folder / "work" / "first", small))  # compiles
    begin = time.monotonic()
    took = finish(start(folder / "work" / "small", small))
    seconds = time.monotonic() - begin
    for given, spent in ((small, took), (large, finish(start(folder / "work" / "large", large)))):
        print(f"{size(given) / 2**30:.2f} GiB, dedup.memory_gib {MEMORY}")
        for name, of in spent.items():
            inside = "inside" if of["peak"] <= MEMORY * 2**30 else "MORE THAN IT MAY"
            rate = size(given) / 1e6 / of["cpu"]
            peak = f"peak {of['peak'] / 2**30:.3f} GiB, {inside}"
            print(f"  {name:9} {of['seconds']:6.1f} s {of['cpu']:7.1f} CPU-s {rate:5.0f} MB/CPU-s, {peak}", flush=True)
    shutil.rmtree(folder / "work" / "large")
    _compare(folder / "work", small, dealt, seconds)


def _compare(work: Path, small: Path, dealt: Path, seconds: float) -> None:
    whole = digest(work / "small")
    for name, given, workers in (("1 worker", small, 1), ("2", small, 2), ("4", small, 4), ("dealt", dealt, 0)):
        finish(start(work / name, given, workers))
        print(f"{name}: {'the same bytes' if digest(work / name) == whole else 'OTHER BYTES'}", flush=True)
        shutil.rmtree(work / name)
    for k, moment in enumerate(np.random.default_rng().uniform(0, seconds, KILLS)):
        folder = work / f"kill {k}"
        process = start(folder, small)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        done = len([name for name in STAGES if (folder / "done" / name).exists()])
        finish(start(folder, small))
        print(
            f"killed after {moment:.1f} of {seconds:.1f} s, in {(*STAGES, 'nothing')[done]}: "
            f"{'the same bytes' if digest(folder) == whole else 'OTHER BYTES'}", flush=True,
        )  # fmt: skip
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["chain"]:
        chain(int(sys.argv[2]))
    elif sys.argv[1:2] == ["stage"]:
        stage(sys.argv[2], int(sys.argv[3]))
    elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        main(Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
