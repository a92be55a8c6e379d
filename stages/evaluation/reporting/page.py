"""Write reports/index.html: one self-contained page on a run, without script, readable offline and on a phone.

It is made of the stages' reports, params.yaml and dvc.lock, and is no out of DVC: it shows the hashes of all outs.
"""

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from stages.contract.errors import UserError
from stages.contract.files import atomic_write
from stages.contract.identity import is_code, locked_fingerprint, recorded_stages
from stages.contract.run import git_revision
from stages.contract.tracking.pipelines import REPORT
from stages.contract.tracking.spool import HEADLINE
from stages.contract.yaml_file import read_text
from stages.evaluation.reporting import summary
from stages.evaluation.reporting.charts import Line, compact, line_chart
from stages.evaluation.reporting.layout import ReportBlock

PAGE = Path(REPORT)
TEMPLATE = Path(__file__).with_name("page.html")
SAMPLES = 8  # open; the others are folded away
TILES = {"predicted": "predicted loss of base", "validation_loss": "reached", "inside": "loss inside the interval"}


@dataclass(frozen=True)
class Curve:
    """A chart of columns of CSV files: ``lines`` are (label, file in reports/, column)."""

    title: str
    y: str
    lines: tuple[tuple[str, str, str], ...]
    x: str = "step"


CURVES = (
    Curve(
        "Pretraining loss", "nats a token",
        (("training", "pretrain/loss.csv", "loss"), ("validation", "pretrain/validation.csv", "eval_loss")),
    ),
    Curve("SFT loss", "nats a token", (("training", "sft/loss.csv", "loss"),)),
    Curve("DPO loss", "nats", (("training", "dpo/loss.csv", "loss"),)),
    Curve("DPO reward margin", "chosen over rejected", (("margin", "dpo/rewards.csv", "rewards/margins"),)),
    Curve("DPO reward accuracy", "share of pairs", (("accuracy", "dpo/rewards.csv", "rewards/accuracies"),)),
    Curve("Learning rate, pretraining", "learning rate", (("pretrain", "pretrain/loss.csv", "learning_rate"),)),
    Curve("Learning rate, SFT", "learning rate", (("sft", "sft/loss.csv", "learning_rate"),)),
    Curve("Learning rate, DPO", "learning rate", (("dpo", "dpo/loss.csv", "learning_rate"),)),
)  # fmt: skip


def write_page(root: Path, running: str = "") -> Path:
    """Write the page of the repository at ``root`` and return its path.

    Args:
        running: stage that calls this before its end, when dvc.lock still has an older entry of it.

    Raises:
        UserError: no stage has reported anything, or another version's stages have.
    """
    reports = root / "reports"
    files = sorted(reports.glob("*/metrics.json"))
    if not files:
        raise UserError(f"{reports}: no stage has reported anything. Run the pipeline first: make run.")
    try:
        text = _render(root, {path.parent.name: _json(path) for path in files}, running)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(
            f"{reports}: not written by this version's stages ({type(e).__name__}: {e}). Run them again: make run."
        ) from None
    with atomic_write(root / PAGE) as part:
        part.write_text(text, encoding="utf-8")
    return root / PAGE


def _render(root: Path, metrics: dict[str, dict[str, Any]], running: str) -> str:
    import jinja2

    # The texts of the page come from people's data: each is escaped.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    plan, reports = _json(root / "out" / "size" / "plan.json"), root / "reports"
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        commit=git_revision(root) or "not in git",
        blocks=_closing(metrics, plan),
        headline=_headline(root),
        bits=_bits(metrics),
        planned=_planned(plan, metrics),
        split=_split(root),
        ladder=_ladder(root),
        charts=[(curve.title, chart) for curve in (*CURVES, _rungs(reports)) if (chart := _chart(root, curve))],
        records=list(summary.records_of(metrics)),
        samples=_samples(root),
        models=summary.MODELS,
        open_samples=SAMPLES,
        params=read_text(root / "params.yaml") if (root / "params.yaml").exists() else "",
        stages=[stage for stage in _stages(root) if stage["name"] != running],
    )


def _closing(metrics: dict[str, dict[str, Any]], plan: dict[str, Any]) -> list[ReportBlock]:
    """Return the blocks of the closing table; none before the eval stage has run."""
    return summary.summary_blocks(metrics["eval"], metrics | {"plan": plan}) if "eval" in metrics else []


def _bits(metrics: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the bits per byte on all held-out text, baselines first."""
    bits = metrics["eval"]["bits_per_byte"] if "eval" in metrics else {}
    return {name: bits[name]["overall"] for name in (*summary.BASELINES, *summary.MODELS) if name in bits}


def _headline(root: Path) -> list[tuple[str, str]]:
    """Return names and values of the figures that `dvc metrics show` prints, in the order of the stages."""
    files = (root / "reports" / stage / HEADLINE for stage in ("forecast", "pretrain", "eval"))
    figures = [figure for file in files for figure in _json(file).items()]
    return [
        (TILES.get(name, name.replace("_", " ")), ("no", "yes")[value] if name == "inside" else compact(value))
        for name, value in figures
    ]  # fmt: skip


def _planned(plan: dict[str, Any], metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Return rows of (figure, planned, reached)."""
    pretrain, forecast = metrics.get("pretrain", {}), metrics.get("forecast", {})
    rows = (
        ("parameters", plan.get("parameters"), pretrain.get("parameters")),
        ("training tokens", plan.get("tokens"), pretrain.get("tokens")),
        ("steps", plan.get("steps"), pretrain.get("steps")),
        ("validation loss, predicted", forecast.get("loss"), pretrain.get("validation_loss")),
    )
    return [(name, _cell(planned), _cell(reached)) for name, planned, reached in rows if planned or reached]


def _cell(value: float | None) -> str:
    return "-" if value is None else compact(value)


def _split(root: Path) -> Markup:
    """Draw the predicted loss of every split of the budget, and mark the chosen one."""
    rows = _rows(root / "reports" / "size" / "isoflop.csv")
    points = [
        (_number(row, "parameters"), _number(row, "predicted_loss"), row.get("split") == "chosen") for row in rows
    ]
    points = sorted(point for point in points if point[0] > 0 and math.isfinite(point[1]))
    lines = [
        Line("same budget", [(x, y) for x, y, _ in points]),
        Line("chosen", [(x, y) for x, y, chosen in points if chosen], dots=True),
    ]
    return line_chart(lines, "parameters (log)", "predicted loss, nats a token", log_x=True)


def _ladder(root: Path) -> Markup:
    """Draw the losses of the ladder's rungs, the fitted law and the target with its interval."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in _rows(root / "reports" / "forecast" / "law.csv"):
        lines.setdefault(row.get("split", ""), []).append((_number(row, "flops"), _number(row, "loss")))
    known = [Line(name, points, dots=not name.startswith("law")) for name, points in lines.items()]
    return line_chart(known, "FLOPs (log)", "validation loss, nats a token", log_x=True)


def _rungs(reports: Path) -> Curve:
    """Return the chart of the training loss of the ladder's rungs."""
    folders = sorted(path.parent.name for path in reports.glob("ladder/*/loss.csv"))
    lines = tuple((name, f"ladder/{name}/loss.csv", "loss") for name in folders)
    return Curve("Loss of the ladder's rungs, share-tokens a parameter", "nats a token", lines)


def _chart(root: Path, curve: Curve) -> Markup:
    lines = []
    for label, file, column in curve.lines:
        points = [(_number(row, curve.x), _number(row, column)) for row in _rows(root / "reports" / file)]
        lines.append(Line(label, [point for point in points if all(map(math.isfinite, point))]))
    return line_chart(lines, curve.x, curve.y)


def _samples(root: Path) -> list[dict[str, Any]]:
    path = root / "reports" / "eval" / "samples.jsonl"
    if not path.exists():
        return []
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [sample for sample in samples if "messages" in sample]


def _stages(root: Path) -> list[dict[str, Any]]:
    """Return name, identity, data and outs of every stage in dvc.lock; data and outs are (path, DVC's md5)."""
    return [
        {
            "name": name,
            "fingerprint": locked_fingerprint(entry),
            "data": [(dep["path"], dep.get("md5", "")) for dep in entry.get("deps", []) if _is_data(dep["path"])],
            "outs": [(out["path"], out.get("md5", "")) for out in entry.get("outs", [])],
        }
        for name, entry in recorded_stages(root).items()
    ]


def _is_data(path: str) -> bool:
    return not is_code(path) and not path.startswith(("out/", "reports/"))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _number(row: dict[str, str], column: str) -> float:
    """Return the number in ``column`` of a row; NaN where there is none, as in a curve with fewer points."""
    return float(row.get(column) or "nan")
