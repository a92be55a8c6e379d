"""Samples of steps in turn."""

from verdict.measuring.steps import WARM_ROUNDS, alternate


class Training:
    """Steps of these seconds, the last for ever."""

    def __init__(self, *seconds):
        self.seconds, self.taken = [*seconds], 0

    def step(self):
        self.taken += 1
        return (self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]), 0.0


def test_a_step_that_compiles_is_no_sample():
    sides = alternate([Training(1.0), Training(1.0, 60.0, 1.1, 1.0)], 0.0)
    assert {*sides[0], *sides[1]} == {1.0}


def test_warming_ends_where_steps_never_agree():
    training = Training(*[1.0, 3.0] * 50)
    alternate([training], 0.0)
    assert training.taken == WARM_ROUNDS + 2 * 4
