"""Which records are taken how often, decided by what they say."""


def copies(digests: list[bytes], weight: float) -> list[int]:
    """How often to take each of n records: weight * n in all, rounded, and none more than once more than another.

    Which ones are taken once more is decided by the ``digests`` of their content: their order does not matter, and a
    larger weight takes what a smaller one took.
    """
    every, more = divmod(round(weight * len(digests)), max(1, len(digests)))
    chosen = set(sorted(range(len(digests)), key=digests.__getitem__)[:more])
    return [every + (i in chosen) for i in range(len(digests))]
