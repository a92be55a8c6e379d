"""The search of a rate ends inside of what it tried, or says that it does not."""

import math

import pytest

from verdict.measuring.rates import FACTOR, TRAININGS, search_rate


@pytest.mark.parametrize(("best", "trained"), [(0, 3), (1, 3), (-1, 4), (3, 5), (-3, 6)])
def test_search_goes_on_until_the_best_is_inside(best, trained):
    search = search_rate(lambda rate: (math.log(rate, FACTOR) - best) ** 2, 1.0)
    assert search.rate == pytest.approx(FACTOR**best)
    assert (search.edge, len(search.losses)) == (False, trained)
    assert [rate for rate, _ in search.losses] == sorted(rate for rate, _ in search.losses)


@pytest.mark.parametrize("slope", [1, -1])
def test_search_that_ends_at_an_edge_says_so(slope):
    search = search_rate(lambda rate: slope * math.log(rate), 1.0)
    assert search.edge and len(search.losses) == TRAININGS
    assert search.rate in (search.losses[0][0], search.losses[-1][0])


def test_a_rate_that_diverges_is_not_the_best():
    search = search_rate(lambda rate: 1e3 if rate > 1 else 4 - rate, 1.0)
    assert (search.rate, search.edge) == (1.0, False)
