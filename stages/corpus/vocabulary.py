"""A tokenizer on disk, with its special tokens and chat template, and encoding by it.

gigatoken encodes; Hugging Face tokenizers say what the right ids are.
"""

import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from stages.corpus.arrays import give_back

END_OF_TEXT, PAD, TURN_START, TURN_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, PAD, TURN_START, TURN_END)

# ChatML. The generation block marks what an assistant learns to write; with the end of its turn inside, it
# learns to stop.
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
BATCH_BYTES = 2**24
WORDS_BYTES = 2**26  # that a thread may remember of words it encoded


class Encoded(NamedTuple):
    """``tokens`` uint32 (tokens,): all documents back to back; ``lengths`` int64 (documents,): tokens of each."""

    tokens: np.ndarray
    lengths: np.ndarray


def save(tokenizer_json: str, folder: Path) -> None:
    """The tokenizer with its chat template, as transformers' AutoTokenizer loads it.

    The same files that its save_pretrained writes, without half a gigabyte of imports.
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
    """Ids by token, special ones included."""
    return _reference(_tokenizer_json(folder)).get_vocab()


def encode(folder: Path, documents: list[str], progress: Callable[[int], None] = lambda n: None) -> Encoded:
    """The ids of ``documents`` by the tokenizer in ``folder``; see :func:`encoder`."""
    run = encoder(folder, documents[:CHECKED])
    parts = [Encoded(np.zeros(0, np.uint32), np.zeros(0, np.int64))]
    for batch in _batches(documents):
        parts.append(run(batch))
        progress(len(batch))
    return Encoded(*map(np.concatenate, zip(*parts, strict=True)))


def encoder(folder: Path, head: list[str]) -> Callable[[list[str]], Encoded]:
    """What encodes documents by the tokenizer in ``folder``.

    A special token's name in a text is text: nothing a document says can end it. gigatoken encodes, unless it cannot,
    or the ids of ``head``, the first CHECKED documents, differ from those of Hugging Face tokenizers, which then encode
    all.
    """
    text = _tokenizer_json(folder)
    reference = reference_encoder(text)
    try:
        fast = fast_encoder(text)
        ids = fast(head)
    except Exception as e:  # whatever kind it raises for a tokenizer that it does not know
        why = f"gigatoken cannot encode by this tokenizer ({' '.join(str(e).split())[:200]})"
    else:
        if all(np.array_equal(a, b) for a, b in zip(ids, reference(head), strict=True)):
            return fast
        why = "gigatoken's ids are others"
    print(f"{why}: Hugging Face tokenizers encode instead", flush=True)
    return reference


def fast_encoder(tokenizer_json: str) -> Callable[[list[str]], Encoded]:
    """gigatoken on as many threads as there are cores.

    Each thread remembers every word it encoded. A new encoder takes the place of one that remembers too much.
    """
    import gigatoken

    # Without added tokens their names are text like any other.
    plain = orjson.dumps(orjson.loads(tokenizer_json) | {"added_tokens": []}).decode()
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
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def reference_encoder(tokenizer_json: str) -> Callable[[list[str]], Encoded]:
    """Hugging Face tokenizers."""
    tokenizer = _reference(tokenizer_json)

    def run(documents: list[str]) -> Encoded:
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(documents, add_special_tokens=False)]
        lengths = np.array([len(row) for row in ids], np.int64)
        return Encoded(np.fromiter((i for row in ids for i in row), np.uint32, int(lengths.sum())), lengths)

    return run


def _tokenizer_json(folder: Path) -> str:
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


@lru_cache(maxsize=1)  # a stage asks for the same one several times, and it takes a tenth of a second to load
def _reference(tokenizer_json: str):
    """Hugging Face's tokenizer, to which a special token's name in a text is text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    return tokenizer


def _batches(documents: list[str]):
    """Runs of documents of about BATCH_BYTES: one result for all would cost more in page faults than encoding."""
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
