"""Quality of a technique: short trainings on packed rows, several seeds, the same search of the rate for each."""

import statistics
from dataclasses import asdict
from functools import partial
from typing import Any

from verdict.claims import Claim
from verdict.measuring.intervals import Measured, paired_interval
from verdict.measuring.progress import steps_saved
from verdict.measuring.rates import Search, search_rate
from verdict.measuring.setting import Setting
from verdict.measuring.trainings import Trained, Training, Wish, trained, weights_of_winners

TUNING_SEED = 1000  # a seed of its own: the best by chance must not be counted again
ADAMW = {"trainer.optimizer": "adamw"}
PACE_STEPS = 30


def trained_loss(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of a technique at the rate that is best for the other, over the same seeds."""
    search = _search(setting, ADAMW)
    return _compared(claim, setting, search, search)


def tuned_loss(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of an optimizer against another's, each at the best rate of the same search."""
    return _compared(claim, setting, *(_search(setting, side) for side in (claim.against, claim.switch)))


def rate_tuning(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of an optimizer at its best rate against three times that rate."""
    search = _search(setting, claim.switch)
    one, other = (_seeds(setting, claim.switch, r, setting.steps) for r in (3 * search.rate, search.rate))
    return _difference(setting, one, other, rates=[3 * search.rate, search.rate], **_searched(search))


def lottery_ticket(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of a model with half of its weights, rewound and trained again, against the dense model's.

    Frankle and Carbin 2018, arXiv:1803.03635, one round of pruning by magnitude within each matrix.
    """
    search = _search(setting, ADAMW)
    rate = search.rate
    dense = _seeds(setting, {}, rate, setting.steps)
    tickets = []
    for seed in range(setting.seeds):
        wish = Wish({}, seed, rate, setting.steps)
        tickets.append(trained(setting, wish, partial(weights_of_winners, setting, wish, 0.5)))
    return _difference(setting, dense, tickets, rates=[rate, rate], **_searched(search))


def _compared(claim: Claim, setting: Setting, one: Search, other: Search) -> Measured:
    steps = setting.steps
    if claim.metric == "loss_at_equal_time":
        steps = max(2, round(steps * _pace_ratio(claim, setting, one.rate, other.rate)))
    before = _seeds(setting, claim.against, one.rate, setting.steps)
    after = _seeds(setting, claim.switch, other.rate, steps)
    details = {"rates": [one.rate, other.rate], "steps": [setting.steps, steps], **_searched(one, other)}
    loss = _difference(setting, before, after, **details)
    if steps != setting.steps:
        return loss
    saved = steps_saved([x.curve for x in before], [x.curve for x in after], **loss.details)
    if claim.metric == "steps":
        return saved
    loss.details["steps_saved"] = [saved.value, saved.low, saved.high]
    return loss


def _searched(*searches: Search) -> dict[str, Any]:
    """Return what the report shows of the searches: all losses, and the best rates that are at an edge."""
    return {
        "searches": [asdict(search)["losses"] for search in searches],
        "edges": sorted({search.rate for search in searches if search.edge}),
    }


def _difference(setting: Setting, before: list[Trained], after: list[Trained], **details: Any) -> Measured:
    losses = [[one.loss for one in side] for side in (before, after)]
    return paired_interval(
        *losses, losses=losses, seconds_per_step=[_pace(before), _pace(after)],
        curves=[side[0].curve for side in (before, after)], parameters=setting.quality.shape.parameters,
        batch=[setting.quality.batch_rows, setting.quality.row_tokens],
        **{"steps": [setting.steps, setting.steps]} | details,
    )  # fmt: skip


def _seeds(setting: Setting, overrides: dict[str, Any], rate: float, steps: int) -> list[Trained]:
    return [trained(setting, Wish(overrides, seed, rate, steps)) for seed in range(setting.seeds)]


def _search(setting: Setting, overrides: dict[str, Any]) -> Search:
    """Search an optimizer's rate, as that of AdamW, by trainings of full length with the seed for tuning."""
    return search_rate(
        lambda rate: trained(setting, Wish(overrides, TUNING_SEED, rate, setting.steps)).loss,
        setting.rate,
        setting.searched,
    )


def _pace_ratio(claim: Claim, setting: Setting, rate: float, own_rate: float) -> float:
    """Return how many steps the technique takes in the time of one of the other's, measured in turn: A B A B.

    Kept, so that trainings of as many steps are found again when a row was stopped.
    """
    sides = claim.against, claim.switch
    return float(setting.remember(lambda: _paces(claim, setting, rate, own_rate), "pace", setting.quality, sides))


def _paces(claim: Claim, setting: Setting, rate: float, own_rate: float) -> float:
    taken: list[list[float]] = [[], []]
    for turn in range(4):
        overrides = (claim.against, claim.switch)[turn % 2]
        wish = Wish(overrides, TUNING_SEED, (rate, own_rate)[turn % 2], min(PACE_STEPS, setting.steps))
        taken[turn % 2].append(Training(setting, wish).run().step_seconds)
    return sum(taken[0]) / sum(taken[1])


def _pace(trainings: list[Trained]) -> float:
    return statistics.median(one.step_seconds for one in trainings)
