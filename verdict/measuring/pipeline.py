"""Figures of the last run of the pipeline in this clone: what `make run` has measured already."""

import json
from pathlib import Path
from typing import Any

from stages.contract.errors import UserError
from verdict.claims import Claim
from verdict.measuring.intervals import Measured, exact
from verdict.measuring.setting import Setting

Z = 2.576  # standard errors of an interval of 99 %


def filter_share(claim: Claim, setting: Setting) -> Measured:
    """Return the share of the documents that the stage filter dropped."""
    figures = _figures("filter")
    return exact(1 - figures["documents_out"] / figures["documents_in"], dropped=figures["dropped"])


def sft_gain(claim: Claim, setting: Setting) -> Measured:
    """Return the loss on held-out answers, sft minus base."""
    losses = _figures("eval")["assistant_loss"]
    before, after = (losses[model]["nats_per_token"] for model in ("base", "sft"))
    return exact(after - before, losses=[[before], [after]], conversations=losses["conversations"])


def dpo_points(claim: Claim, setting: Setting) -> Measured:
    """Return the points of preference accuracy that dpo adds to sft, with the paired error."""
    figures = _figures("eval")["preferences"]
    change = figures["sft_to_dpo"]
    points, reach = 100 * change["difference"], 100 * Z * change["stderr"]
    return Measured(points, points - reach, points + reach, samples=figures["pairs"])


def _figures(stage: str) -> dict[str, Any]:
    path = Path("reports") / stage / "metrics.json"
    if not path.exists():
        raise UserError(f"{path}: the pipeline has not run here. Run it first: make run.")
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures
