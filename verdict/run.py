"""Run the measurements that this hardware allows, the most important first, until VERDICT_MINUTES are used.

    python -m verdict.run

Each is a stage of verdict/dvc.yaml: what is measured already, here or by somebody with the same hardware and versions
whose cache is at hand, is not measured again. `make verdict` calls it.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract.errors import UserError, one_line
from verdict.claims import load_claims
from verdict.machine import write_machine
from verdict.measure import able, hardware_level, minutes_wanted, summary_line, usual_seconds
from verdict.report import load_results, write_report

if TYPE_CHECKING:
    from dvc.repo import Repo

HOME = Path(__file__).parent
RESULTS, PAGE = HOME / "results", Path("reports/verdict")


def main() -> int:
    """Measure, write the report and return 0; 1 for an error that the person can mend."""
    try:
        minutes = minutes_wanted()
        write_machine(HOME / "hardware.json")
        claims, ends, failed = load_claims(), time.monotonic() + 60 * minutes, []
        names = able(claims, hardware_level())
        with opened() as repo:
            for name in names:
                enough = ends - time.monotonic() >= usual_seconds(claims[name])
                if enough and not measured(repo, name, ends) and time.monotonic() < ends:
                    failed.append(name)
        left = [name for name in names if not (RESULTS / f"{name}.json").exists() and name not in failed]
        if left:
            print(f"{len(left)} rows are left after {minutes:g} minutes: {', '.join(left)}. Run it again.", flush=True)
        for path in write_report([RESULTS], PAGE):
            print(path, flush=True)
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def opened() -> "Iterator[Repo]":
    """Open the DVC repository of the measurements; its commands find this interpreter as `python`."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        with contextlib.chdir(HOME), Repo() as repo:  # DVC's run cache looks for the repository in the current folder
            yield repo
    except DvcException as e:
        raise UserError(one_line(e)) from None


def measured(repo: "Repo", name: str, ends: float) -> bool:
    """Measure one row, or take it from DVC's cache, and print it; return whether there is a result.

    Args:
        ends: time.monotonic() at which it is stopped; its finished trainings are kept.
    """
    from dvc.exceptions import DvcException

    os.environ["VERDICT_MINUTES"] = str(
        max(1.0, ends - time.monotonic()) / 60
    )  # of verdict.measure, which is the stage's command
    try:
        repo.reproduce(f"measure@{name}", single_item=True)
    except DvcException as e:
        if time.monotonic() < ends:
            print(f"{name}: {one_line(e)}", file=sys.stderr)
        return False
    result = load_results(RESULTS).get(name)
    if result:
        print(summary_line(name, result), flush=True)
    return result is not None


if __name__ == "__main__":
    sys.exit(main())
