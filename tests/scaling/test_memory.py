"""The planner's sums against peaks that benchmarks/trainer.py measured on an H100."""

import pytest

from stages.scaling import memory
from stages.scaling.shapes import Shape

M374, B1, B7 = (1024, 2816, 24, 8), (2048, 5632, 22, 16), (4096, 11008, 32, 32)


def shape(hidden: int, intermediate: int, layers: int, heads: int, row_tokens: int) -> Shape:
    return Shape(32000, hidden, intermediate, layers, heads, 128, row_tokens)


@pytest.mark.parametrize(
    ("size", "row_tokens", "rows", "options", "gib"),
    [
        (M374, 2048, 32, {}, 55.8),
        (M374, 2048, 16, {}, 31.2),
        (M374, 2048, 2, {"accumulated": True}, 10.2),
        (M374, 4096, 8, {"checkpointing": "selective"}, 16.3),
        (M374, 2048, 32, {"checkpointing": "full"}, 10.5),
        (B1, 2048, 16, {}, 63.2),
        (B1, 2048, 16, {"precision": "fp8"}, 48.1),
        (B1, 4096, 8, {"checkpointing": "full"}, 21.7),
        (B1, 4096, 8, {"checkpointing": "selective"}, 35.1),
        (B7, 2048, 4, {"accumulated": True, "offload": "host"}, 72.3),
    ],
)
def test_plans_are_within_a_twentieth_of_measured_peaks(size, row_tokens, rows, options, gib):
    shares = memory.step(shape(*size, row_tokens), rows * row_tokens, **options)
    assert sum(shares.values()) / 2**30 == pytest.approx(gib, rel=0.05)


def test_gradients_in_buckets_add_to_the_activations_of_one_micro_batch():
    one, ddp = (sum(memory.step(shape(*M374, 2048), 16 * 2048, buckets=b).values()) for b in (False, True))
    assert ddp - one == 4 * shape(*M374, 2048).parameters


def test_accumulated_gradients_add_to_the_activations():
    small = shape(*M374, 2048)
    once, several = (sum(memory.step(small, 16 * 2048, accumulated=a).values()) for a in (False, True))
    assert several - once == 4 * small.parameters
