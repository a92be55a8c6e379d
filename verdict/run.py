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
from verdict.measure import able, hardware_level, summary_line
from verdict.report import load_results, write_report

if TYPE_CHECKING:
    from dvc.repo import Repo

HOME = Path(__file__).parent
RESULTS, PAGE = HOME / "results", Path("reports/verdict")
DEFAULT_MINUTES = 30.0


def main() -> int:
    """Measure, write the report and return 0; 1 for an error that the person can mend."""
    try:
        minutes = minutes_wanted()
        write_machine(HOME / "hardware.json")
        names = able(load_claims(), hardware_level())
        ends = time.monotonic() + 60 * minutes
        with opened() as repo:
            failed = [name for name in names if time.monotonic() < ends and not measured(repo, name)]
        left = [name for name in names if not (RESULTS / f"{name}.json").exists() and name not in failed]
        if left:
            print(f"{len(left)} rows are left after {minutes:g} minutes: {', '.join(left)}. Run it again.", flush=True)
        for path in write_report([RESULTS], PAGE):
            print(path, flush=True)
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def minutes_wanted() -> float:
    """Return VERDICT_MINUTES, or the default. Raises UserError if it is no number."""
    value = os.environ.get("VERDICT_MINUTES", "")
    try:
        minutes = float(value or DEFAULT_MINUTES)
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 10**6:
        raise UserError(f"VERDICT_MINUTES is {value!r}; it must be a number of minutes above 0.")
    return minutes


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


def measured(repo: "Repo", name: str) -> bool:
    """Measure one row, or take it from DVC's cache, and print it; return whether there is a result."""
    from dvc.exceptions import DvcException

    try:
        repo.reproduce(f"measure@{name}", single_item=True)
    except DvcException as e:
        print(f"{name}: {one_line(e)}", file=sys.stderr)
        return False
    result = load_results(RESULTS).get(name)
    if result:
        print(summary_line(name, result), flush=True)
    return result is not None


if __name__ == "__main__":
    sys.exit(main())
