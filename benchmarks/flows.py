"""Measure what the flow costs over bare `dvc repro`: on a whole run, and on a no-op.

    python -m benchmarks.flows FOLDER [PAIRS]

Clones the last commit into FOLDER and runs the whole pipeline there, by the flow and by DVC in turn, PAIRS (2) times
each, from nothing but compiled code, after a warm-up run; then each three times with nothing to do, the flow also with
a Prefect server that is up. Prints every time, the medians, the flow's extra time and its limits: 10 s over a whole
run, 8 s over a no-op. Exit code: 1 above a limit. About four minutes a run on two idle cores.
"""

import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from stages.contract.files import locked

ROOT = Path(__file__).resolve().parents[1]
FLOW = (sys.executable, "-m", "flows.pipeline")
DVC = (sys.executable, "-m", "dvc", "repro")
MOST_WHOLE, MOST_NOOP = 10.0, 8.0  # seconds that the flow may add to bare `dvc repro`


def environment(**more: str) -> dict[str, str]:
    """Return this environment, in which `python` is this interpreter and only ``more`` names a Prefect server."""
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
    """Wait for the process that ships a run's metrics, which outlives Prefect's server."""
    with locked(clone / ".verdict" / "shipper.lock", patience=math.inf):
        pass


def clean(clone: Path) -> None:
    """Remove everything that a run made except compiled code and Prefect's database."""
    rest(clone)
    kept = ["-e", "__pycache__", "-e", ".verdict/prefect"]  # Prefect migrates a new database once a clone
    subprocess.run(["git", "-C", str(clone), "clean", "-fdxq", *kept], check=True)
    for name in ("cache", "cache-checkpoints", "tmp"):
        shutil.rmtree(clone / ".dvc" / name, ignore_errors=True)


def median(name: str, times: list[float]) -> float:
    middle = statistics.median(times)
    print(f"  {name:32} {middle:7.1f} s   of {', '.join(f'{took:.1f}' for took in times)}", flush=True)
    return middle


def within(flow: float, bare: float, bar: float) -> bool:
    print(f"  the flow adds {flow - bare:+.1f} s ({flow / bare - 1:+.1%}); the bar is {bar:.0f} s", flush=True)
    return flow - bare <= bar


def whole(clone: Path, pairs: int) -> bool:
    seconds(clone, FLOW)  # compiles the kernels, and brings the libraries' files to memory
    times: dict[tuple[str, ...], list[float]] = {FLOW: [], DVC: []}
    for pair in range(pairs):
        for command in (FLOW, DVC) if pair % 2 == 0 else (DVC, FLOW):
            clean(clone)
            times[command].append(seconds(clone, command))
    print("the whole pipeline")
    return within(median("python -m flows.pipeline", times[FLOW]), median("dvc repro", times[DVC]), MOST_WHOLE)


def noop(clone: Path) -> bool:
    from flows.servers import temporary

    rest(clone)
    times: dict[str, list[float]] = {"dvc repro": [], "python -m flows.pipeline": [], "the same, to a server": []}
    server = temporary.start_server(clone / ".verdict")
    to_server = {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": server.login}
    for _ in range(3):
        times["dvc repro"].append(seconds(clone, DVC))
        times["python -m flows.pipeline"].append(seconds(clone, FLOW))
        times["the same, to a server"].append(seconds(clone, FLOW, **to_server))
    print("nothing to do")
    bare, *flow = [median(name, took) for name, took in times.items()]
    return within(max(flow), bare, MOST_NOOP)


def main(folder: Path, pairs: int) -> int:
    clone = folder / "clone"
    if clone.exists():
        sys.exit(f"{clone} is already there; name another folder, or remove it.")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{model[0].split(':')[1].strip() if model else 'CPU unknown'}, {len(os.sched_getaffinity(0))} cores")
    print(", ".join(f"{name} {version(name)}" for name in ("dvc", "prefect", "mlflow", "torch")), flush=True)
    return int(not all([whole(clone, pairs), noop(clone)]))


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words or words[0].startswith("-") or not all(word.isdigit() and int(word) for word in words[1:]):
        sys.exit(__doc__)
    sys.exit(main(Path(words[0]).absolute(), int(words[1]) if words[1:] else 2))
