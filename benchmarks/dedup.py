"""Whether `dedup` keeps what it promises on a corpus larger than its memory.

    python -m benchmarks.dedup FOLDER

Makes JSONL in FOLDER (2.2 GB, and an eighth of it), of made-up words, about 3 kB a document, every tenth nearly a copy,
every thousandth line malformed. Prints what time and memory four times dedup.memory_gib takes, and an eighth of that;
whether the bytes are the same with 1, 2 and 4 workers, with the documents dealt into other files, and after kill -9 at
ten random moments. Some five minutes on two cores.
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
MEMORY = 0.5  # GiB
KILLS = 10


def corpus(folder: Path, size: float, files: int = 4) -> None:
    """About ``size`` bytes of JSONL in ``folder``."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    vocabulary = [f"w{word:06}" for word in range(100_000)]
    for part in range(files):
        with (folder / f"{part}.jsonl").open("w") as f:
            written = number = 0
            while written < size / files:
                words = [vocabulary[k] for k in rng.integers(len(vocabulary), size=400)]
                for copy in range(1 + (number % 10 == 0)):
                    words[10 * copy] = "other"
                    text = " ".join(words)
                    written += f.write(f'{{"id": "{part}-{number}-{copy}", "text": "{text}", "source": "made"}}\n')
                if number % 1000 == 0:
                    f.write('{"id": "malformed", "text": "cut\n')
                number += 1


def deal(given: Path, folder: Path) -> None:
    """The lines of ``given`` in another order in other files."""
    folder.mkdir()
    lines = [line for path in sorted(given.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    order = np.random.default_rng(1).permutation(len(lines))
    for part, chosen in enumerate(np.array_split(order, 7)):
        (folder / f"part-{part}.jsonl").write_bytes(b"".join(lines[k] + b"\n" for k in chosen))


def start(work: Path, given: Path, workers: int = 0) -> subprocess.Popen:
    """The stage on ``given`` in ``work``, where it may have been before."""
    from ruamel.yaml import YAML

    yaml = YAML()
    params = yaml.load((ROOT / "params.yaml").read_text())
    params["data"]["pretrain"] = {"path": str(given.absolute()), "files": "*.jsonl"}
    params["dedup"].update(memory_gib=MEMORY, against="none")
    work.mkdir(parents=True, exist_ok=True)
    with (work / "params.yaml").open("w") as f:
        yaml.dump(params, f)
    command = [sys.executable, "-m", "benchmarks.dedup", "stage", str(workers)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=work, env=environment, stdout=subprocess.PIPE, text=True)


def stage(workers: int) -> None:
    """All that the stage does but DVC's bookkeeping and the tracker's."""
    from stages import dedup
    from stages.contract import Run
    from stages.contract.params import load_params
    from stages.contract.spool import NoSpool

    if workers:
        os.sched_getaffinity = lambda _: range(workers)
    folders = [Path(top) / "dedup" for top in ("out", "reports", "scratch")]
    for folder in folders[:2]:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    dedup.main(Run("dedup", load_params(), *folders, NoSpool()))
    peak = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    print(json.dumps({"cpu": time.process_time(), "peak": 1024 * int(peak)}))


def finish(process: subprocess.Popen) -> dict:
    said = process.communicate()[0]
    if process.returncode:
        sys.exit(f"the stage failed:\n{said}")
    return json.loads(said.splitlines()[-1])


def digest(work: Path) -> str:
    """Of all that the stage wrote but where malformed lines were."""
    paths = sorted(path for top in ("out", "reports") for path in (work / top).rglob("*") if path.is_file())
    found = hashlib.sha256()
    for path in paths:
        if path.name != "quarantine.jsonl":
            found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def size(given: Path) -> int:
    return sum(path.stat().st_size for path in given.iterdir())


def main(folder: Path) -> None:
    large, small, dealt = folder / "large", folder / "small", folder / "dealt"
    if not dealt.exists():
        corpus(large, 4 * MEMORY * 2**30)
        corpus(small, MEMORY * 2**30 / 2)
        deal(small, dealt)
    shutil.rmtree(folder / "work", ignore_errors=True)
    finish(start(folder / "work" / "first", small))  # compiles
    for given in (small, large):
        spent = finish(start(folder / "work" / given.name, given))
        print(
            f"{size(given) / 2**30:.2f} GiB, dedup.memory_gib {MEMORY}: {spent['cpu']:.1f} CPU-s, "
            f"{size(given) / 1e6 / spent['cpu']:.0f} MB/CPU-s, peak {spent['peak'] / 2**30:.3f} GiB, "
            f"{'inside' if spent['peak'] <= MEMORY * 2**30 else 'MORE THAN IT MAY'}", flush=True,
        )  # fmt: skip
    whole = digest(folder / "work" / "small")
    for name, given, workers in (("1 worker", small, 1), ("2", small, 2), ("4", small, 4), ("dealt", dealt, 0)):
        finish(start(folder / "work" / name, given, workers))
        print(f"{name}: {'the same bytes' if digest(folder / 'work' / name) == whole else 'OTHER BYTES'}", flush=True)
    begin = time.monotonic()
    finish(start(folder / "work" / "timed", small))
    seconds = time.monotonic() - begin
    for k, moment in enumerate(np.random.default_rng().uniform(0, seconds, KILLS)):
        work = folder / "work" / f"kill {k}"
        process = start(work, small)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        made = sum(path.name.isdigit() for path in work.glob("scratch/dedup/shards/*/*"))
        finish(start(work, small))
        print(
            f"killed after {moment:.1f} of {seconds:.1f} s, {made} shards made: "
            f"{'the same bytes' if digest(work) == whole else 'OTHER BYTES'}", flush=True,
        )  # fmt: skip
        shutil.rmtree(work)


if __name__ == "__main__":
    if sys.argv[1:2] == ["stage"]:
        stage(int(sys.argv[2]))
    elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
        main(Path(sys.argv[1]))
    else:
        sys.exit(__doc__)
