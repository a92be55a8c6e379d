"""Train a byte-level BPE tokenizer: Sennrich et al. 2015, arXiv 1508.07909; GPT-2's pattern: Radford et al. 2019.

gigatoken learns the merges; Hugging Face tokenizers are the oracle in tests.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.contract.process.quiet import quietly
from stages.corpus.tokens.pretokens import count_pretokens, write_pretokens
from stages.corpus.tokens.vocabulary import SPECIAL

_Learned = tuple[dict[int, bytes], list[tuple[bytes, bytes]]]


def train(documents: Path, vocab_size: int, progress: Callable[[int], None] = lambda n: None) -> str:
    """Train a tokenizer; return its tokenizer.json, with ids for the 256 bytes, the merges, then SPECIAL.

    Args:
        documents: a Parquet file with a column text.
        vocab_size: of all tokens; there are fewer if the text has fewer pairs to merge.
        progress: called with numbers of documents, as they are read.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab, merges = _merges(documents, vocab_size - len(SPECIAL), progress)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={_written(token): number for number, token in vocab.items()},
            merges=[(_written(left), _written(right)) for left, right in merges],
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer.to_str()


def _merges(documents: Path, vocab_size: int, progress: Callable[[int], None]) -> _Learned:
    """Learn the merges; return the bytes of each id, and the merged pairs in order."""
    import gigatoken

    counts = count_pretokens(documents, progress=progress)
    print(f"learning merges from {len(counts):,} different words", flush=True)
    with TemporaryDirectory() as folder:
        write_pretokens(counts, path := Path(folder) / "pretokens.parquet")
        counts.clear()
        with quietly():
            return gigatoken.train_bpe(gigatoken.ParquetFileSource([path]), vocab_size, [])


def _written(token: bytes) -> str:
    return "".join(_byte_letters()[byte] for byte in token)


@cache
def _byte_letters() -> list[str]:
    """Return the printable character that represents each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + hidden.index(byte)) for byte in range(256)]
