"""Read verdict/claims.yaml, typed: what is claimed of a technique, how it is measured, and when the claim holds."""

import copy
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from stages.contract.errors import UserError, explain_invalid
from stages.contract.params import Params, Section, read_params, validated
from verdict.table import MEASUREMENTS

PARAMS = Path("params.yaml")
CLAIMS = Path(__file__).with_name("claims.yaml")
DOCUMENT = "the starting document"
LEVELS = {"cpu": 0, "gpu": 1, "gpus": 2}  # hardware that a row needs, the least first
Range = tuple[float | None, float | None]  # least and most; None: no limit
Branch = Literal[
    "memory", "compute", "data", "optimizers", "scaling", "precision", "distributed", "infrastructure",
    "post_training", "headline",
]  # fmt: skip
Metric = Literal[
    "speed", "memory", "loss_at_equal_tokens", "loss_at_equal_time", "steps", "data_removed", "time_share", "effort"
]
Verdict = Literal["confirmed", "partly", "refuted", "undecided"]
Text = Annotated[str, Field(min_length=1)]


class Rule(Section):
    """Where a figure lies if its claim holds, and if it holds in part."""

    confirmed: Range
    partly: Range


class Claim(Section):
    """Claim on a technique: one row of claims.yaml.

    ``switch`` and ``against`` are overrides of params.yaml by dotted key; ``hardware`` is the least that is needed.
    """

    branch: Branch
    name: Text
    claim: Text
    source: Text = DOCUMENT
    switch: dict[str, Any] = Field(default_factory=dict)
    against: dict[str, Any] = Field(default_factory=dict)
    shape: Literal["narrow", "wide"] = "narrow"
    metric: Metric
    measurement: str = ""
    hardware: Literal["cpu", "gpu", "gpus"]
    rule: Rule | None = None
    importance: Annotated[int, Field(ge=1, le=3)]
    effort: Text
    note: str = ""
    reason: str = ""

    @model_validator(mode="after")
    def _figure_or_reason(self) -> Self:
        if not self.measurement and not self.reason:
            raise ValueError("has neither a measurement nor a reason; give one")
        if self.measurement and self.rule is None:
            raise ValueError(f"measurement {self.measurement} needs a rule with confirmed and partly")
        if self.measurement and self.measurement not in MEASUREMENTS:
            raise ValueError(f"measurement {self.measurement!r} is not one of {', '.join(MEASUREMENTS)}")
        return self


class _Claims(Section):
    rows: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Claim]


def load_claims(path: Path = CLAIMS) -> dict[str, Claim]:
    """Read the rows of ``path`` by technique. Raises UserError for a row that is wrong, or a switch that is none."""
    try:
        claims = _Claims.model_validate({"rows": read_params(path)}).rows
    except ValidationError as e:
        raise UserError(explain_invalid(e, _Claims, path).splitlines()[0]) from None
    values = read_params(PARAMS)  # once: parsing takes longer than all else here
    for technique, row in claims.items():
        for overrides in (row.switch, row.against):
            _override(copy.deepcopy(values), overrides, f"{path}: {technique}")
    return claims


def overridden(overrides: dict[str, Any], where: str = "params.yaml") -> Params:
    """Return params.yaml with other values of some dotted keys.

    Raises:
        UserError: no such key, or a value that it does not take.
    """
    return _override(read_params(PARAMS), overrides, where)


def _override(values: Any, overrides: dict[str, Any], where: str) -> Params:
    for key, value in overrides.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section.get(name, {}) if isinstance(section, dict) else {}
        if not isinstance(section, dict) or last not in section:
            raise UserError(f"{where}: {key} is no parameter of params.yaml.")
        section[last] = value
    return validated(values, where)


def judge(rule: Rule, low: float, value: float, high: float) -> Verdict:
    """Return the verdict on a figure and its interval: see the head of claims.yaml."""
    grades = {_grade(rule, figure) for figure in (low, value, high)}
    if len(grades) == 1:
        return grades.pop()
    return "partly" if "refuted" not in grades else "undecided"


def _grade(rule: Rule, figure: float) -> Verdict:
    if _inside(rule.confirmed, figure):
        return "confirmed"
    return "partly" if _inside(rule.partly, figure) else "refuted"


def _inside(limits: Range, figure: float) -> bool:
    least, most = limits
    return (least is None or figure >= least) and (most is None or figure <= most)
