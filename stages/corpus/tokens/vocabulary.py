"""Save a tokenizer with its special tokens and chat template, and encode documents by it.

gigatoken encodes; Hugging Face tokenizers are its oracle, in every run.
"""

import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson

from stages.corpus.text.arrays import give_back

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, PAD, TURN_START, TURN_END)

# ChatML. The generation block marks the tokens that the assistant learns; with the end of its turn inside, it learns to
# stop.
CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}
{{- message['content'] + '<|im_end|>' }}
{%- endgeneration %}
{%- else %}
{{- message['content'] + '<|im_end|>' }}
{%- endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

SETTINGS = {
    "backend": "tokenizers",
    "clean_up_tokenization_spaces": False,
    "eos_token": END_OF_TEXT,
    "extra_special_tokens": [TURN_START, TURN_END],
    "model_max_length": int(1e30),  # none
    "pad_token": PAD,
    "tokenizer_class": "TokenizersBackend",
}

CHECKED = 64  # documents whose ids are compared with the reference in every run
WORDS_BYTES = 2**26  # of encoded words that a thread may keep


class Encoded(NamedTuple):
    """``tokens`` uint32 (tokens,): all documents back to back; ``lengths`` int64 (documents,): tokens of each."""

    tokens: np.ndarray
    lengths: np.ndarray


def save_tokenizer(tokenizer_json: str, folder: Path) -> None:
    """Save a tokenizer with its chat template, for transformers' AutoTokenizer.

    The files are those of its save_pretrained, without half a gigabyte of imports.
    """
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.post_processor is None:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.dumps(SETTINGS, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def load_vocabulary(folder: Path) -> dict[str, int]:
    """Return the ids by token, special tokens included."""
    return reference_tokenizer(folder).get_vocab()


def vocabulary_size(folder: Path) -> int:
    """Return the number of ids of the tokenizer in ``folder``."""
    return 1 + max(load_vocabulary(folder).values())


def reference_tokenizer(folder: Path) -> "Tokenizer":
    """Return Hugging Face's tokenizer of ``folder``, loaded once; the name of a special token in a text is text."""
    return _reference(_tokenizer_json(folder))


def encoder(folder: Path, head: list[str]) -> Callable[[list[str]], Encoded]:
    """Return a function that encodes documents by the tokenizer in ``folder``.

    The name of a special token in a text is text: no document can end itself. gigatoken encodes. If it cannot, or if
    its ids of ``head``, the first CHECKED documents, are not those of Hugging Face tokenizers, these encode instead.
    """
    text = _tokenizer_json(folder)
    reference = reference_encoder(text)
    try:
        fast = fast_encoder(text)
        ids = fast(head)
    except Exception as e:  # any kind, for a tokenizer that it does not know
        why = f"gigatoken cannot encode by this tokenizer ({' '.join(str(e).split())[:200]})"
    else:
        if all(np.array_equal(a, b) for a, b in zip(ids, reference(head), strict=True)):
            return fast
        why = "gigatoken's ids are others"
    print(f"{why}: Hugging Face tokenizers encode instead", flush=True)
    return reference


def fast_encoder(tokenizer_json: str) -> Callable[[list[str]], Encoded]:
    """Encode by gigatoken, on as many threads as there are cores.

    Each thread keeps every word that it encoded. An encoder that keeps too many is replaced by a new one.
    """
    import gigatoken

    # Without special tokens their names are text like any other.
    content = orjson.loads(tokenizer_json)
    added = [token for token in content.get("added_tokens") or [] if not token["special"]]
    plain = orjson.dumps(content | {"added_tokens": added}).decode()
    tokenizer, before, room = None, 0, WORDS_BYTES * len(os.sched_getaffinity(0))

    def run(documents: list[str]) -> Encoded:
        nonlocal tokenizer, before
        if fresh := tokenizer is None or _resident() - before > room:
            tokenizer = None
            give_back()
            tokenizer = gigatoken.Tokenizer.from_json(plain)
        layout = tokenizer.encode_batch(documents).layout.to_ListOffsetArray64(True)
        offsets = np.asarray(layout.offsets)
        tokens = np.asarray(layout.content.data)[: offsets[-1]]
        encoded = Encoded(tokens.astype(np.uint32, copy=False), np.diff(offsets).astype(np.int64))
        if fresh:
            before = _resident()
        return encoded

    return run


def _resident() -> int:
    """Return the bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reference_encoder(tokenizer_json: str) -> Callable[[list[str]], Encoded]:
    """Encode by Hugging Face tokenizers."""
    tokenizer = _reference(tokenizer_json)

    def run(documents: list[str]) -> Encoded:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]
        lengths = np.array([len(row) for row in ids], np.int64)
        return Encoded(np.fromiter((i for row in ids for i in row), np.uint32, int(lengths.sum())), lengths)

    return run


def _tokenizer_json(folder: Path) -> str:
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


@lru_cache(maxsize=1)  # a stage loads the same one several times, a tenth of a second each
def _reference(tokenizer_json: str) -> "Tokenizer":
    """Load Hugging Face's tokenizer; the name of a special token in a text is text to it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer
