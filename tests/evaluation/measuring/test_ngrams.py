from collections import Counter

import numpy as np
import pytest

from stages.evaluation.measuring import baselines, ngrams

V = 7


def brute_force(stream, a, b, c):
    """Interpolated Kneser-Ney from its definition, with dictionaries."""
    triples = Counter(zip(stream, stream[1:], stream[2:], strict=False))
    pairs = Counter((y, z) for _, y, z in triples)
    singles = Counter(z for _, z in pairs)

    def discount(counts):
        ones, twos = (sum(1 for n in counts.values() if n == k) for k in (1, 2))
        return ones / (ones + 2 * twos) if ones and twos else 0.5

    def mix(counts, context, key, lower):
        after = {k: n for k, n in counts.items() if k[:-1] == context}
        if not after:
            return lower
        d, total = discount(counts), sum(after.values())
        return max(after.get(key, 0) - d, 0) / total + d * len(after) / total * lower

    p = mix({(z,): n for z, n in singles.items()}, (), (c,), 1 / V)
    p = mix(pairs, (b,), (b, c), p)
    return mix(triples, (a, b), (a, b, c), p)


def fitted(stream):
    rows = np.array([stream])
    return ngrams.fit_ngrams(*ngrams.count_rows(rows, np.array([len(stream)]), V), V)


@pytest.mark.parametrize("size", [3, 12, 60])
def test_matches_the_definition_and_sums_to_one(size):
    stream = (np.random.default_rng(size).integers(0, V - 1, size) ** 2 % V).tolist()
    a, b, c = (x.ravel() for x in np.meshgrid(*[np.arange(V)] * 3, indexing="ij"))
    p = ngrams.probabilities(fitted(stream), a, b, c)
    np.testing.assert_allclose(p, [brute_force(stream, *key) for key in zip(a, b, c, strict=True)], atol=1e-12)
    np.testing.assert_allclose(p.reshape(V * V, V).sum(axis=1), 1)
    assert (p > 0).all()


def test_padding_and_row_ends_are_not_counted():
    keys, counts = ngrams.count_rows(np.array([[1, 2, 3, 0, 0], [4, 5, 6, 1, 2]]), np.array([3, 5]), V)
    seen = [(k // V**2, k // V % V, k % V) for k in keys]
    assert dict(zip(seen, counts, strict=True)) == {(1, 2, 3): 1, (4, 5, 6): 1, (5, 6, 1): 1, (6, 1, 2): 1}


def test_byte_models_are_distributions_over_bytes_and_the_end():
    keys, counts = ngrams.count_bytes([b"to be or not to be", b"that is the question", b""])
    model = ngrams.fit_ngrams(keys, counts, ngrams.BYTES)
    symbols = np.arange(ngrams.BYTES)
    for a, b in [(256, 256), (ord("t"), ord("o")), (ord("z"), ord("z")), (ord("e"), 256)]:
        total = ngrams.probabilities(model, np.full(257, a), np.full(257, b), symbols).sum()
        assert total == pytest.approx(1)
    assert (2 ** ngrams.unigram_log2(keys, counts, ngrams.BYTES)).sum() == pytest.approx(1)


def test_counting_bytes_in_chunks_changes_only_the_seams(monkeypatch):
    texts = [bytes(np.random.default_rng(i).integers(97, 100, 50).astype(np.uint8)) for i in range(9)]
    whole = dict(zip(*ngrams.count_bytes(texts), strict=True))
    monkeypatch.setattr(ngrams, "_CHUNK", 120)
    chunks = dict(zip(*ngrams.count_bytes(texts), strict=True))
    v = ngrams.BYTES
    changed = {k for k in whole.keys() | chunks.keys() if whole.get(k) != chunks.get(k)}
    assert all(k // v % v == 256 for k in changed)  # only trigrams around the end of a document
    assert sum(whole.values()) - sum(chunks.values()) < 10


def test_a_context_helps_on_text_like_the_training_text(texts):
    train, held_out = texts[3][:2000], texts[3][2000:]
    keys, counts = ngrams.count_bytes([train.encode()])
    single, triple = baselines.byte_nats(keys, counts, [held_out, ""])
    assert 0 < triple[0] < single[0]
    assert single[1] == triple[1] == 0


def test_long_training_text_is_thinned_evenly(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"text": ["aaaa", "bbbb", "cccc", "dddd"]}), path)
    keys, _ = baselines.byte_counts(path, limit=8)
    assert {k % 257 for k in keys} == {ord("a"), ord("c"), 256}
    rows = np.arange(40).reshape(4, 10) % V
    _, counts = baselines.token_counts(rows, np.full(4, 10), V, limit=20)
    assert counts.sum() == 2 * 8
