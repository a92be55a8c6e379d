"""Quality of a technique: short trainings on packed rows, several seeds, the same small search of the rate for each."""

import statistics
from typing import Any

from verdict.claims import Claim
from verdict.measuring.intervals import Measured, paired_interval
from verdict.measuring.setting import Setting
from verdict.measuring.trainings import Trained, Training, Wish, trained, weights_of_winners

TUNING_SEED = 1000  # a seed of its own: the best of three by chance must not be counted again
OWN_RATE = "trainer.optimizer"
PACE_STEPS = 30


def trained_loss(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of a technique at the rate that is best for the other, over the same seeds."""
    rate = _best_rate(setting, {OWN_RATE: "adamw"})
    return _compared(claim, setting, rate, rate)


def tuned_loss(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of an optimizer against another's, each at the best of the same number of rates."""
    return _compared(claim, setting, *(_best_rate(setting, side) for side in (claim.against, claim.switch)))


def rate_tuning(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of an optimizer at its best rate against three times that rate."""
    rate = _best_rate(setting, claim.switch)
    one, other = (_seeds(setting, claim.switch, r, setting.steps) for r in (3 * rate, rate))
    return _difference(setting, one, other, rates=[3 * rate, rate])


def lottery_ticket(claim: Claim, setting: Setting) -> Measured:
    """Measure the loss of a model with half of its weights, rewound and trained again, against the dense model's.

    Frankle and Carbin 2018, arXiv:1803.03635, one round of pruning by magnitude within each matrix.
    """
    rate = _best_rate(setting, {OWN_RATE: "adamw"})
    dense = _seeds(setting, {}, rate, setting.steps)
    tickets = []
    for seed in range(setting.seeds):
        wish = Wish({}, seed, rate, setting.steps)
        tickets.append(trained(setting, wish, weights_of_winners(setting, wish, 0.5)))
    return _difference(setting, dense, tickets, rates=[rate, rate])


def _compared(claim: Claim, setting: Setting, rate: float, own_rate: float) -> Measured:
    before = _seeds(setting, claim.against, rate, setting.steps)
    after = _seeds(setting, claim.switch, own_rate, setting.steps)
    steps = setting.steps
    if claim.metric == "loss_at_equal_time":
        steps = max(2, round(setting.steps * _pace_ratio(claim, setting)))
        after = _seeds(setting, claim.switch, own_rate, steps)
    return _difference(setting, before, after, rates=[rate, own_rate], steps=[setting.steps, steps])


def _difference(setting: Setting, before: list[Trained], after: list[Trained], **details: Any) -> Measured:
    losses = [[one.loss for one in side] for side in (before, after)]
    return paired_interval(
        *losses, losses=losses, seconds_per_step=[_pace(before), _pace(after)],
        curves=[side[0].curve for side in (before, after)], parameters=setting.quality.shape.parameters,
        batch=[setting.quality.batch_rows, setting.quality.row_tokens], **details,
    )  # fmt: skip


def _seeds(setting: Setting, overrides: dict[str, Any], rate: float, steps: int) -> list[Trained]:
    return [trained(setting, Wish(overrides, seed, rate, steps)) for seed in range(setting.seeds)]


def _best_rate(setting: Setting, overrides: dict[str, Any]) -> float:
    """Return the best of the setting's rates for an optimizer, by one training each."""
    rates = [factor * setting.rate for factor in setting.rates]
    losses = {rate: trained(setting, Wish(overrides, TUNING_SEED, rate, setting.steps)).loss for rate in rates}
    return min(losses, key=losses.__getitem__)


def _pace_ratio(claim: Claim, setting: Setting) -> float:
    """Return how many steps the technique takes in the time of one of the other's, measured in turn: A B A B."""
    taken: list[list[float]] = [[], []]
    for turn in range(4):
        overrides = (claim.against, claim.switch)[turn % 2]
        wish = Wish(overrides, TUNING_SEED, setting.rate, min(PACE_STEPS, setting.steps))
        taken[turn % 2].append(Training(setting, wish).run().step_seconds)
    return sum(taken[0]) / sum(taken[1])


def _pace(trainings: list[Trained]) -> float:
    return statistics.median(one.step_seconds for one in trainings)
