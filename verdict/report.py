"""Write the report on measured claims: one page that is readable offline and on a phone, Markdown, and its drawings.

    python -m verdict.report FOLDER [OTHER] [--to FOLDER]

FOLDER: results of `python -m verdict.measure`, or `make verdict`; OTHER: those of another machine, beside them.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.contract.errors import UserError, shorten
from stages.contract.files import atomic_write
from verdict import figures
from verdict.claims import LEVELS, Branch, Claim, load_claims
from verdict.machine import machine_name

TEMPLATE = Path(__file__).with_name("page.html")
BRANCHES: tuple[Branch, ...] = (
    "headline", "memory", "compute", "data", "optimizers", "scaling", "precision", "distributed", "infrastructure",
    "post_training",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What one machine says about a claim."""

    figure: str
    verdict: str
    advice: str
    reason: str = ""
    conditions: str = ""

    @property
    def text(self) -> str:
        return "; ".join(text for text in (self.figure or self.reason, self.conditions) if text)


@dataclass(frozen=True)
class Row:
    """A claim and what each machine says."""

    technique: str
    claim: Claim
    cells: list[Cell]

    @property
    def command(self) -> str:
        return f"python -m verdict.measure {self.technique} --force" if self.claim.measurement else ""


@dataclass(frozen=True)
class Machine:
    """A machine, its results, and the drawings of them."""

    name: str
    facts: list[tuple[str, str]]
    drawings: dict[str, str]
    counts: dict[str, int]


def load_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the results in ``folder`` by technique. Raises UserError for a file that is none."""
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if "technique" in value:
                results[str(value["technique"])] = value
        except (ValueError, TypeError, UnicodeDecodeError) as e:
            raise UserError(
                f"{path} is no result of verdict.measure: {shorten(e)}. Remove it and measure again."
            ) from None
    return results


def write_report(folders: list[Path], to: Path) -> list[Path]:
    """Write page, Markdown and drawings of the results in ``folders``, a machine each, to ``to``; return their paths.

    Raises:
        UserError: a folder has no results.
    """
    results = [load_results(folder) for folder in folders]
    for folder, found in zip(folders, results, strict=True):
        if not found:
            raise UserError(f"{folder} has no results. Measure first: make verdict, or python -m verdict.measure.")
    rows = [
        Row(name, claim, [_cell(claim, found.get(name), _level(found)) for found in results])
        for name, claim in _claims()
    ]
    machines = [_machine(found, rows, place) for place, found in enumerate(results)]
    to.mkdir(parents=True, exist_ok=True)
    pages = {"index.html": _html(rows, machines), "report.md": markdown(rows, machines)}
    for place, machine in enumerate(machines):
        pages |= {_file(name, place): drawing for name, drawing in machine.drawings.items()}
    for name, text in pages.items():
        with atomic_write(to / name) as part:
            part.write_text(text, encoding="utf-8")
    return [to / name for name in ("index.html", "report.md")]


def markdown(rows: list[Row], machines: list[Machine]) -> str:
    """Return the report as Markdown."""
    lines = ["# Verdict: " + " and ".join(machine.name for machine in machines), ""]
    for machine in machines:
        lines += [f"- {name}: {value}" for name, value in machine.facts] + [""]
        lines += [", ".join(f"{count} {verdict}" for verdict, count in machine.counts.items()) + ".", ""]
    for place, machine in enumerate(machines):
        lines += [f"![{name} on {machine.name}]({_file(name, place)})" for name in machine.drawings] + [""]
    heads = "".join(f" {machine.name} | verdict | |" for machine in machines)
    for branch in BRANCHES:
        lines += [f"## {_title(branch)}", "", f"| technique | claim |{heads} notes |"]
        lines += ["|---" * (3 + 3 * len(machines)) + "|"]
        lines += [_markdown_row(row) for row in rows if row.claim.branch == branch] + [""]
    lines += ["Repeat a row: `python -m verdict.measure NAME --force`; its NAME is in the first column.", ""]
    return "\n".join(lines)


def _markdown_row(row: Row) -> str:
    cells = [text for cell in row.cells for text in (cell.text, cell.verdict, cell.advice)]
    note = "; ".join(text for text in (row.claim.note, f"effort: {row.claim.effort}") if text)
    return "| " + " | ".join([f"{row.claim.name} (`{row.technique}`)", row.claim.claim, *cells, note]) + " |"


def _claims() -> list[tuple[str, Claim]]:
    return sorted(load_claims().items(), key=lambda item: BRANCHES.index(item[1].branch))


def _level(results: dict[str, dict[str, Any]]) -> int:
    return max((min(2, result["machine"]["gpus"]) for result in results.values() if "machine" in result), default=0)


def _cell(claim: Claim, result: dict[str, Any] | None, level: int) -> Cell:
    if result is None:
        needs = {"gpu": "needs a GPU", "gpus": "needs several GPUs"}
        missing = needs[claim.hardware] if LEVELS[claim.hardware] > level else "needs time: run it again"
        return Cell("", "not measured", "-", claim.reason or missing)
    if "error" in result:
        return Cell("", "not measured", "-", shorten(result["error"], 160))
    return Cell(
        figures.shown(result), result["verdict"], figures.advise(claim, result), conditions=figures.conditions(result)
    )


def _machine(results: dict[str, dict[str, Any]], rows: list[Row], place: int) -> Machine:
    known = next((result["machine"] for result in results.values() if "machine" in result), None)
    if known is None:
        raise UserError("none of the results has a figure. Measure again: python -m verdict.measure --force.")
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    facts = [("machine", machine_name(known)), ("processor", f"{known['cores']} cores, {known['cpu']}")]
    facts += [("versions", f"Python {known['python']}, CUDA {known['cuda'] or 'none'}, {packages}")]
    counts = Counter(row.cells[place].verdict for row in rows)
    return Machine(machine_name(known), facts, figures.drawings(results), dict(counts.most_common()))


def _html(rows: list[Row], machines: list[Machine]) -> str:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    branches = [(_title(branch), [row for row in rows if row.claim.branch == branch]) for branch in BRANCHES]
    return str(page.render(branches=branches, machines=machines))


def _title(branch: str) -> str:
    return {"headline": "Headline claims"}.get(branch, branch.replace("_", "-").capitalize())


def _file(name: str, place: int) -> str:
    return f"{name}.svg" if place == 0 else f"{name}-{place + 1}.svg"


def main(arguments: list[str] | None = None) -> int:
    """Write the report of the folders on the command line."""
    parser = argparse.ArgumentParser(prog="python -m verdict.report", description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="of results, one a machine")
    parser.add_argument("--to", type=Path, default=Path("reports/verdict"), metavar="FOLDER", help="of the report")
    options = parser.parse_args(arguments)
    try:
        for path in write_report(options.folders, options.to):
            print(path)
    except UserError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
