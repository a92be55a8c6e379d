"""What the flow costs beside bare `dvc repro`: with nothing to do, and over the whole pipeline.

    python -m benchmarks.flows FOLDER [PAIRS]

Clones the last commit into FOLDER and runs the whole pipeline there, by the flow and by DVC in turn, PAIRS (2) times
each, from nothing but compiled code, after a run that does not count; then each three times with nothing to do, the
flow also with a Prefect server that is up. Prints every time, the medians and their ratios. About four minutes a run
on two cores that do nothing else.
"""

import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOW = (sys.executable, "-m", "flows.pipeline")
DVC = (sys.executable, "-m", "dvc", "repro")
MAY_TAKE, MAY_ADD = 8.0, 0.03  # seconds with nothing to do; share of a bare run


def environment(**more: str) -> dict[str, str]:
    """This one, in which `python` is this interpreter and no Prefect server is named but by ``more``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTHONDONT"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "DVC_NO_ANALYTICS": "1"} | more


def seconds(clone: Path, command: tuple[str, ...], **more: str) -> float:
    begin = time.monotonic()
    ended = subprocess.run(
        command, cwd=clone, env=environment(**more), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if ended.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")
    return time.monotonic() - begin


def rest(clone: Path) -> None:
    """Wait for what a run leaves behind: the process that sends metrics, and longer than Prefect's server stops."""
    path = clone / ".verdict" / "shipper.lock"
    if path.exists():
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def clean(clone: Path) -> None:
    """Nothing that a run made is left but compiled code."""
    rest(clone)
    subprocess.run(["git", "-C", str(clone), "clean", "-fdxq", "-e", "__pycache__"], check=True)
    for name in ("cache", "cache-checkpoints", "tmp"):
        shutil.rmtree(clone / ".dvc" / name, ignore_errors=True)


def tell(name: str, times: list[float]) -> float:
    middle = statistics.median(times)
    print(f"  {name:32} {middle:7.1f} s   of {', '.join(f'{took:.1f}' for took in times)}", flush=True)
    return middle


def whole(clone: Path, pairs: int) -> None:
    seconds(clone, FLOW)  # compiles the kernels, and brings the libraries' files to memory
    times: dict[tuple[str, ...], list[float]] = {FLOW: [], DVC: []}
    for pair in range(pairs):
        for command in (FLOW, DVC) if pair % 2 == 0 else (DVC, FLOW):
            clean(clone)
            times[command].append(seconds(clone, command))
    print("the whole pipeline")
    flow, bare = tell("python -m flows.pipeline", times[FLOW]), tell("dvc repro", times[DVC])
    print(f"  the flow adds {flow / bare - 1:+.1%}; it may add {MAY_ADD:.0%}", flush=True)


def nothing(clone: Path) -> None:
    from flows import server

    rest(clone)
    times: dict[str, list[float]] = {"dvc repro": [], "python -m flows.pipeline": [], "the same, to a server": []}
    url = server.start()
    for _ in range(3):
        times["dvc repro"].append(seconds(clone, DVC))
        times["python -m flows.pipeline"].append(seconds(clone, FLOW))
        times["the same, to a server"].append(seconds(clone, FLOW, PREFECT_API_URL=url))
    print("nothing to do")
    slowest = max([tell(name, took) for name, took in times.items()][1:])
    print(f"  it takes {slowest:.1f} s; it may take {MAY_TAKE:.0f}", flush=True)


def main(folder: Path, pairs: int) -> None:
    clone = folder / "clone"
    if clone.exists():
        sys.exit(f"{clone} is already there; name another folder, or remove it.")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{model[0].split(':')[1].strip() if model else 'CPU unknown'}, {len(os.sched_getaffinity(0))} cores")
    print(", ".join(f"{name} {version(name)}" for name in ("dvc", "prefect", "mlflow", "torch")), flush=True)
    whole(clone, pairs)
    nothing(clone)


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or words[0].startswith("-") or not all(word.isdigit() and int(word) for word in words[1:]):
        sys.exit(__doc__)
    main(Path(words[0]).absolute(), int(words[1]) if words[1:] else 2)
