"""Pass the tracker's state from the shipper, which has no terminal, to a terminal.

The shipper writes .verdict/delivery.json; stages and flows record the lines they printed in .verdict/printed.json.
"""

import contextlib
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages.contract.tracking.locations import spools
from stages.contract.tracking.spool import read_as, write_json

KEPT = 20  # refusals not printed yet
FRESH_MS = 1000  # the same news is not written more often


@dataclass
class Delivery:
    """The state of the tracker. ``trouble`` is empty while spools arrive; ``refusals`` are (milliseconds, line)."""

    at: int = 0  # milliseconds
    trouble: str = ""
    refusals: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Printed:
    """Lines that a terminal has shown: refusals up to ``at``, and the last ``trouble`` of ``pipeline``."""

    at: int = 0  # milliseconds
    pipeline: str = ""
    trouble: str = ""


def read_delivery(home: Path) -> Delivery:
    """Return the last `Delivery`; an empty one if another version wrote it."""
    return read_as(home / ".verdict" / "delivery.json", Delivery) or Delivery()


def note(home: Path, trouble: str, refusals: list[str]) -> None:
    """Record the ``trouble``, "" while spools arrive, and what MLflow refused."""
    now, before = int(time.time() * 1000), read_delivery(home)
    if not refusals and before.trouble == trouble and now - before.at < FRESH_MS:
        return
    kept = [*before.refusals, *((now, line) for line in refusals)][-KEPT:]
    with contextlib.suppress(OSError):  # a full disk; the trouble stands in shipper.log
        write_json(home / ".verdict" / "delivery.json", asdict(Delivery(now, trouble, kept)))


def delivery_news(home: Path, pipeline: str, since: float = 0.0, trouble: str = "") -> list[str]:
    """Return the lines that no terminal has shown yet: each refusal once, and once a ``pipeline`` why spools wait.

    Args:
        home: the folder of .verdict.
        pipeline: its key.
        since: seconds since the epoch; what the shipper learned before is the past.
        trouble: the tracker's present trouble, known without the shipper.
    """
    path = home / ".verdict" / "printed.json"
    delivery, printed = read_delivery(home), read_as(path, Printed) or Printed()
    lines = [line for at, line in delivery.refusals if at > printed.at]
    waiting, trouble = waiting_runs(home), trouble or delivery.trouble
    if trouble and waiting and (printed.pipeline, printed.trouble) != (pipeline, trouble):
        runs = "1 run waits" if waiting == 1 else f"{waiting} runs wait"
        past = "At the last attempt: " if trouble == delivery.trouble and delivery.at < since * 1000 else ""
        lines.append(f"{past}{trouble} {runs} in .verdict/spool and will be sent by a later stage.")
        printed.pipeline, printed.trouble = pipeline, trouble
    if lines:
        printed.at = max([at for at, _ in delivery.refusals], default=printed.at)
        with contextlib.suppress(OSError):
            write_json(path, asdict(printed))
    return lines


def wait(home: Path, since: float, seconds: float) -> None:
    """Wait until the shipper has learned something after ``since`` (seconds since the epoch), ``seconds`` at most."""
    deadline = time.monotonic() + seconds
    while read_delivery(home).at < since * 1000 and time.monotonic() < deadline:
        time.sleep(0.1)


def waiting_runs(home: Path) -> int:
    """Return how many runs of stages are not in MLflow yet, or not whole."""
    return sum(1 for _ in spools(home).glob("*/run.json"))
