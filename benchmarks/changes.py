"""One key of `sizing`, `dedup` and `dpo` each, changed and changed back by `dvc repro`, `dvc exp run` and the flow.

    python -m benchmarks.changes FOLDER [--sections sizing dedup dpo]

FOLDER is a clone in which `make run` has ended; its params.yaml and outs are as before afterwards. Each way has a value
of its own, so that each makes a result; what was there before must come back from DVC's run cache. `dpo` trains.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from stages.contract.identity import locked_stages


class Change(NamedTuple):
    stage: str  # that reads the key
    key: str
    shipped: str
    values: tuple[str, str, str]  # one a way


CHANGES = {
    "sizing": Change("size", "tokens_per_parameter", "20", ("2", "3", "5")),  # a shape each
    "dedup": Change("dedup", "permutations", "120", ("240", "160", "80")),
    "dpo": Change("dpo", "beta", "0.1", ("0.2", "0.3", "0.4")),
}
WAYS = {
    "dvc repro": lambda override, stage: ["dvc", "repro", stage],
    "dvc exp run": lambda override, stage: ["dvc", "exp", "run", "-S", override, stage],
    "flow": lambda override, stage: ["python", "-m", "flows.pipeline", "-S", override, stage],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sections", nargs="+", choices=CHANGES, default=list(CHANGES))
    arguments = parser.parse_args()
    wrong = [line for section in arguments.sections for line in _section(arguments.folder.resolve(), section)]
    print("\n".join(wrong) or "every result is right")
    return bool(wrong)


def _section(root: Path, section: str) -> list[str]:
    """What is wrong with the results of one key, by all ways."""
    change, wrong = CHANGES[section], []
    _, before = _recorded(root, section)
    seen = {before}
    for way, value in zip(WAYS, change.values, strict=True):
        for wanted in (value, change.shipped):
            began = time.monotonic()
            output = _bring(root, section, way, wanted)
            stated, outs = _recorded(root, section)
            restored = "is cached - skipping run" in output or "(ran: 0," in output
            print(f"{section}.{change.key}={wanted} by {way}: {time.monotonic() - began:.0f} s, dvc.lock says {stated}")
            back = wanted == change.shipped
            if float(stated) != float(wanted) or (outs == before) != back or (not back and outs in seen):
                wrong.append(f"{section}.{change.key}={wanted} by {way}: dvc.lock says {stated}, outs {outs}")
            if back and not restored:
                wrong.append(f"{section}.{change.key}={wanted} by {way}: not restored from the run cache:\n{output}")
            seen.add(outs)
    return wrong


def _bring(root: Path, section: str, way: str, value: str) -> str:
    """Set the key to ``value`` and bring its stage there; returns what was printed."""
    change = CHANGES[section]
    override = f"{section}.{change.key}={value}"
    if way == "dvc repro":
        _edit(root / "params.yaml", section, change.key, value)
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = WAYS[way](override, change.stage)
    ended = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(command)}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def _edit(path: Path, section: str, key: str, value: str) -> None:
    before, head, rest = path.read_text().partition(f"\n{section}:")
    start, name, line = rest.partition(f"\n  {key}: ")
    path.write_text(f"{before}{head}{start}{name}{value}{line[len(line.split()[0]) :]}")


def _recorded(root: Path, section: str) -> tuple[str, str]:
    """The key's value in dvc.lock, and the md5 of the stage's first out."""
    change = CHANGES[section]
    entry = locked_stages((root / "dvc.lock").read_text())[change.stage]
    return str(entry["params"]["params.yaml"][section][change.key]), entry["outs"][0]["md5"]


if __name__ == "__main__":
    sys.exit(main())
