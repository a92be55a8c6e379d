"""Write the best measured switches for this hardware into params.yaml, after asking, with the figures as comments.

    python -m verdict.adopt [FOLDER] [--yes]

FOLDER: results of `make verdict` (default: verdict/results). It shows the change as a diff first.
"""

import argparse
import difflib
import re
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.contract.errors import UserError
from stages.contract.files import atomic_write
from stages.contract.yaml_file import cut, place_of, scalar
from verdict import figures
from verdict.claims import PARAMS, Claim, load_claims, overridden
from verdict.report import load_results

NEVER = ("trainer.checkpointing", "trainer.offload", "trainer.sharding")  # the planner sets them by memory
COMMENT = re.compile(r"\s*# verdict: .*$")


def choices(claims: dict[str, Claim], results: dict[str, dict[str, Any]]) -> dict[str, tuple[Any, str]]:
    """Return dotted key -> value and figure, of switches that are better in time or loss and worse in no measured row.

    A switch of several keys is one recipe, not a choice of each; the largest gain wins where two rows set one key.
    """
    best: dict[str, tuple[float, Any, str]] = {}
    for name, result in results.items():
        claim = claims.get(name)
        if claim is None or "error" in result or len(claim.switch) != 1 or figures.advise(claim, result) != "keep":
            continue
        ((key, value),) = claim.switch.items()
        if key in NEVER or value == "auto" or _worse(key, value, claims, results):
            continue
        gain = abs(result["value"] - figures.EFFECTS[claim.metric][0])
        if key not in best or gain > best[key][0]:
            best[key] = (gain, value, f"{name}: {figures.shown(result)}")
    return {key: (value, figure) for key, (_, value, figure) in best.items()}


def _worse(key: str, value: Any, claims: dict[str, Claim], results: dict[str, dict[str, Any]]) -> bool:
    """Whether some row measured this switch as worse."""
    rows = [(claims[name], result) for name, result in results.items() if name in claims and "error" not in result]
    return any(claim.switch == {key: value} and figures.advise(claim, result) == "drop" for claim, result in rows)


def adopted(text: str, chosen: dict[str, tuple[Any, str]]) -> str:
    """Return the text of params.yaml with the chosen values, each with its figure behind its comment."""
    document, lines = YAML().load(text), text.splitlines()
    for key, (value, figure) in chosen.items():
        line, column = place_of(document, key)
        before, _, after = cut(lines[line], column)
        lines[line] = f"{before}{scalar(value)}{COMMENT.sub('', after)} # verdict: {figure}"
    return "\n".join(lines) + "\n"


def _agreed() -> bool:
    try:
        return input("Write it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # nobody is there to answer
        print("\nNot written. --yes writes without asking.")
        return False


def main(arguments: list[str] | None = None) -> int:
    """Show the diff, ask, and write it; return 0, or 1 if there is nothing to adopt from."""
    parser = argparse.ArgumentParser(prog="python -m verdict.adopt", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("verdict/results"), metavar="FOLDER")
    parser.add_argument("--yes", action="store_true", help="write without asking")
    options = parser.parse_args(arguments)
    try:
        results = load_results(options.folder)
        if not results:
            raise UserError(f"{options.folder} has no results. Measure first: make verdict.")
        chosen = choices(load_claims(), results)
        overridden({key: value for key, (value, _) in chosen.items()})
        before = PARAMS.read_text(encoding="utf-8")
        after = adopted(before, chosen)
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    if after == before:
        print("params.yaml has the best measured switches already.")
        return 0
    print(
        "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "params.yaml", "adopted", lineterm=""))
    )
    if options.yes or _agreed():
        with atomic_write(PARAMS) as part:
            part.write_text(after, encoding="utf-8")
        print("params.yaml is written. `make run` runs the stages that read it again.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
