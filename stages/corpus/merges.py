"""Byte-level BPE learned from a corpus.

Sennrich et al. 2015, arXiv 1508.07909; over bytes with GPT-2's pattern: Radford et al. 2019. gigatoken learns the
merges; Hugging Face tokenizers say what the right ones are.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from stages.corpus.pretokens import count_pretokens, write_pretokens
from stages.corpus.quiet import quiet
from stages.corpus.vocabulary import SPECIAL


def train(documents: Path, vocab_size: int, progress: Callable[[int], None] = lambda n: None) -> str:
    """A tokenizer.json whose ids are the 256 bytes, the merges, then SPECIAL.

    Args:
        documents: a Parquet file with a column text.
        vocab_size: of all tokens; fewer come out where the text has fewer pairs to merge.
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


def _merges(documents: Path, vocab_size: int, progress: Callable[[int], None]) -> tuple:
    """Bytes by id, and pairs of bytes in the order in which they are merged."""
    import gigatoken

    counts = count_pretokens(documents, progress=progress)
    print(f"learning merges from {len(counts):,} different words", flush=True)
    with TemporaryDirectory() as folder:
        write_pretokens(counts, path := Path(folder) / "pretokens.parquet")
        counts.clear()
        with quiet():
            return gigatoken.train_bpe(gigatoken.ParquetFileSource([path]), vocab_size, [])


def _written(token: bytes) -> str:
    return "".join(_byte_letters()[byte] for byte in token)


@cache
def _byte_letters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in shown}
    hidden = (byte for byte in range(256) if byte not in letters)
    letters |= {byte: chr(256 + k) for k, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]
