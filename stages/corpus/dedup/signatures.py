"""Sign documents by min-hashing, with a key for each band of locality-sensitive hashing.

Broder 1997 (resemblance by min-wise hashing); Lee et al. 2021, arXiv 2107.06499 (for language models).
"""

import numpy as np

from stages.corpus.text.folding import folded
from stages.corpus.text.hashing import mix
from stages.corpus.text.kernels import kernel
from stages.corpus.text.words import Texts, fold_table, hash_ngrams, hash_words, longest_text

VECTORS = 32  # n-grams that a vector instruction compares, at most
BLOCK = 1024  # n-grams compared for one permutation after another: they fit the first-level cache


def sign(documents: Texts, ngram: int, permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """Sign documents by min-hashing the word n-grams of their `folded` texts.

    The hash family is multiply-shift (Dietzfelbinger et al. 1997): the upper 32 bits of a x + b mod 2^64.

    Returns:
        uint32 (documents, permutations), the signatures; and bool (documents,), whether a document has no word.
    """
    # Raw bits of PCG64 are the same in every numpy version. The number is part of the method: with another one, the
    # signatures of a kept corpus could not be compared.
    raw = np.random.PCG64(20210714).random_raw(2 * permutations).astype(np.uint64)
    factor, shift = raw[:permutations] | np.uint64(1), raw[permutations:]
    documents = folded(documents)
    signatures = np.full((len(documents.offsets) - 1, permutations), 0xFFFFFFFF, np.uint32)
    wordless = np.zeros(len(signatures), np.bool_)
    _sign(documents.data, documents.offsets, ngram, fold_table(), factor, shift, signatures, wordless)
    return signatures, wordless


@kernel
def _sign(
    data: np.ndarray, offsets: np.ndarray, n: int, fold: np.ndarray, factor: np.ndarray, shift: np.ndarray,
    signatures: np.ndarray, wordless: np.ndarray,
) -> None:  # fmt: skip
    # Pages of the scratch array that are never written take no memory.
    scratch = np.empty(longest_text(offsets, 0, wordless.shape[0]) + VECTORS, np.uint64)
    for i in range(wordless.shape[0]):
        words = hash_words(data, offsets[i], offsets[i + 1], fold, scratch)
        count = hash_ngrams(scratch, words, n)
        wordless[i] = count == 0
        _least(scratch, count, factor, shift, signatures[i])


@kernel
def _least(ngrams: np.ndarray, count: int, factor: np.ndarray, shift: np.ndarray, signature: np.ndarray) -> None:
    """Lower each value of ``signature`` to the least hash of the n-grams.

    The least upper 32 bits are those of the least 64 bits, so vectors of 64 bits are compared without a shift. The last
    n-gram is repeated after ``count`` to fill the last vector.
    """
    whole = -(-count // VECTORS) * VECTORS
    ngrams[count:whole] = ngrams[count - 1]
    for first in range(0, whole, BLOCK):
        some = ngrams[first : min(first + BLOCK, whole)]
        for p in range(signature.shape[0]):
            a, b, least = factor[p], shift[p], np.uint64(0xFFFFFFFFFFFFFFFF)
            for g in range(some.shape[0]):
                least = min(least, a * some[g] + b)
            signature[p] = min(signature[p], np.uint32(least >> np.uint64(32)))


@kernel
def band_keys(signatures: np.ndarray, bands: int) -> np.ndarray:
    """Return the key of each document in each band, uint64 (bands, documents), equal if all rows of the band agree."""
    keys = np.empty((bands, signatures.shape[0]), np.uint64)
    rows = signatures.shape[1] // bands
    for k in range(signatures.shape[0]):
        for band in range(bands):
            state = np.uint64(0)
            for p in range(band * rows, (band + 1) * rows):
                state = mix(state ^ np.uint64(signatures[k, p])) + np.uint64(p)
            keys[band, k] = state
    return keys


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the estimated Jaccard similarity of signatures row by row, float64 (documents,)."""
    return (a == b).mean(axis=1)
