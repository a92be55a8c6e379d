"""The stages of dvc.yaml, one module each, and the rooms they call."""

import contextlib
import importlib.util
import os
import signal
import sys
import time
from types import FrameType

BEGUN = time.time_ns()  # before any code of a stage is read; see contract.snapshot

EXIT_INTERRUPTED, EXIT_PREEMPTED = 130, 75


def end_on_signals(name: str) -> None:
    """Let SIGINT and SIGTERM end this process at once, with one line that begins with ``name`` and an exit code.

    An exception raised amid an import becomes a traceback of whatever imports (numpy's C code, weak references).
    Nothing is left to tidy up: a stage survives SIGKILL. Training handles both signals by writing a checkpoint.
    """
    owner, terminal = os.getpid(), os.dup(2)  # libraries are silenced by redirecting 2

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner or "VERDICT_WORKER" in os.environ:  # the parent prints the line
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        interrupted = number == signal.SIGINT
        line = "interrupted" if interrupted else "preempted by SIGTERM; the next run resumes from the finished work"
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        with contextlib.suppress(OSError):
            os.write(terminal, f"{name}: {line}\n".encode())
        os._exit(EXIT_INTERRUPTED if interrupted else EXIT_PREEMPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def _module_to_run() -> str:
    """Return X while Python imports this package for `python -m stages.X`, "" in any other process."""
    if sys.argv[:1] != ["-m"] or "-m" not in sys.orig_argv:
        return ""
    package, _, module = sys.orig_argv[sys.orig_argv.index("-m") + 1].partition(".")
    return module if package == "stages" and "." not in module else ""


if _name := _module_to_run():
    end_on_signals(_name)  # before anything else is imported, which takes seconds

if not all(map(importlib.util.find_spec, ("dvc", "prefect", "pydantic", "torch"))):
    sys.exit(
        f"{sys.executable} lacks packages of requirements.lock.\n"
        "Run `make run`, or `source .venv/bin/activate` before `dvc repro`."
    )

# Models and data are local. The Hugging Face libraries look for a hub when they are imported, TRL sends telemetry,
# and their progress bars are thousands of lines in a log; so this comes before any of them.
for _name in (
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "HF_HUB_DISABLE_PROGRESS_BARS",
    "HF_DATASETS_DISABLE_PROGRESS_BARS",
    "TQDM_DISABLE",
):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# After every operation OpenMP's threads spin, libgomp's 300,000 times (a millisecond), before they sleep. Beside other
# work a spinning thread holds the core that the thread it waits for needs. 1,000 spins outlast the gap between two
# operations and little more. 92k parameters, two threads on two cores, tokens/s: idle 40,000 to 50,000 by default,
# 42,000 so, 33,000 to 39,000 without spinning (OMP_WAIT_POLICY=passive); at a load of 8 below 600, 8,900 and 8,500.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
