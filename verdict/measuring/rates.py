"""Search of an optimizer's learning rate: the same allowance for each, and honest about where it ends."""

from collections.abc import Callable
from dataclasses import dataclass

FACTOR = 3.0  # between neighbors; closer ones differ by less than seeds do
TRAININGS = 6  # of a search at most


@dataclass(frozen=True)
class Search:
    """Result of a search.

    Args:
        rate: the best.
        edge: a neighbor of the best was not tried, so a better rate may lie beyond.
        losses: rate -> loss, all that were tried, ascending.
    """

    rate: float
    edge: bool
    losses: list[tuple[float, float]]


def search_rate(loss_at: Callable[[float], float], start: float, trainings: int = TRAININGS) -> Search:
    """Try ``start`` and then the missing neighbors of the best so far, until it has both or ``trainings`` are used."""
    losses = {0: loss_at(start)}  # by the power of FACTOR
    best, missing = 0, [1, -1]
    while missing and len(losses) < trainings:
        losses[missing[0]] = loss_at(start * FACTOR ** missing[0])
        best = min(losses, key=losses.__getitem__)
        missing = [power for power in (best + 1, best - 1) if power not in losses]
    tried = [(start * FACTOR**power, losses[power]) for power in sorted(losses)]
    return Search(start * FACTOR**best, bool(missing), tried)
