"""The toy stage of the temporary DVC repositories in these tests; ./behaviour says how it behaves."""

import os
import sys
import time
from pathlib import Path

from stages.contract import Run, UserError, run_stage
from stages.contract.errors import Preempted


def main(run: Run) -> None:
    behaviour = Path("behaviour").read_text().strip() if Path("behaviour").exists() else ""
    if behaviour == "user error":
        raise UserError("dedup.ngram: 0 is too small. Use at least 1.")
    if behaviour == "bug":
        raise ZeroDivisionError("a bug")
    if behaviour == "preempted":
        raise Preempted("SIGTERM at step 5 of 9")
    if behaviour == "full disk":
        Path("/dev/full").write_text("x")
    if behaviour == "edit":
        Path("input.txt").write_text("edited while running")
    done = run.scratch / "steps"
    first = int(done.read_text()) if done.exists() else 0
    if first:
        print(f"resuming from step {first}")
    for step in range(first, 20):
        run.log(step, loss=1 / (1 + step))
        done.write_text(str(step - step % 5))  # a checkpoint every five steps
        if behaviour == "die" and step == 7:
            os.kill(os.getpid(), 9)
        time.sleep(float(os.environ.get("TOY_SECONDS", 0)))
    (run.out / "text").write_text(Path("input.txt").read_text().upper() * int(run.arguments.get("times", 1)))
    run.report({"letters": len(Path("input.txt").read_text()), "nested": {"half": 0.5}, "name": "toy"})


if __name__ == "__main__":
    run_stage("toy", main, ("times", "half")[: len(sys.argv) - 1])
