"""Adopt the tokenizer of a public checkpoint: its special tokens and chat template, and the tokens that it lacks.

Llama, Mistral, Qwen and others name padding, ends of texts and turns differently; their own names are used. A missing
token is added at the end of the vocabulary, so that no id changes. Not for encoding: see `vocabulary`.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stages.contract.errors import UserError
from stages.contract.process.imports import lighten_transformers
from stages.contract.process.quiet import quietly
from stages.corpus.tokens.vocabulary import CHAT_TEMPLATE, END_OF_TEXT, PAD, TURN_END, TURN_START, reference_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

FILE_BYTES = 2**28  # the largest published tokenizer.json has 33 MB
IDS = 2**24
# Names of public tokenizers. A model for chats often has the end of a turn as its eos_token; documents end with these.
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
PADS = (PAD, "<|finetune_right_pad_id|>", "<pad>", "[PAD]")


class Marks(NamedTuple):
    """Ids of the tokens before a document, after a document, and in the rest of a row."""

    begin: int
    end: int
    pad: int


def document_marks(folder: Path) -> Marks:
    """Return the marks of documents in the vocabulary of ``folder``, without importing transformers."""
    settings = json.loads((folder / "tokenizer_config.json").read_bytes())
    names = {key: _name(settings.get(f"{key}_token")) for key in ("bos", "eos", "pad")}
    return _marks(reference_tokenizer(folder), **names)


def marks_of(tokenizer: "PreTrainedTokenizerBase") -> Marks:
    """Return the marks of documents of a tokenizer of transformers."""
    names = {key: getattr(tokenizer, f"{key}_token") for key in ("bos", "eos", "pad")}
    return _marks(tokenizer.backend_tokenizer, **names)


def _marks(backend: "Tokenizer", bos: str | None, eos: str | None, pad: str | None) -> Marks:
    """Choose the marks: a document ends with the end of a text, not of a turn.

    It begins with the token that the tokenizer itself puts before a text (Llama, Mistral), or with the end of the text
    before (Qwen).
    """
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    known = [name for name in ENDS if name in added]
    end = eos if eos in ENDS or not known else known[0]
    begin = bos if bos and backend.encode("").tokens[:1] == [bos] else end
    ids = [backend.token_to_id(name) for name in (begin, end, pad) if name is not None]
    if len(ids) < 3 or None in ids:
        raise UserError(f"the tokenizer has no token for the end of a text ({end}) or for padding ({pad}).")
    return Marks(*(int(i) for i in ids if i is not None))


def _name(token: str | dict[str, str] | None) -> str | None:
    """Return the text of a special token of tokenizer_config.json, which may be an object."""
    return token["content"] if isinstance(token, dict) else token


def holds_model(folder: Path) -> bool:
    """Return whether ``folder`` has a model, or the tokenizer of one."""
    return (folder / "config.json").exists() or (folder / "tokenizer.json").exists()


def adopt(folder: Path) -> "tuple[PreTrainedTokenizerBase, str]":
    """Return the tokenizer of the model in ``folder``, missing tokens added, and one line to print about it.

    Raises:
        UserError: there is no tokenizer that can be read.
    """
    tokenizer = load_tokenizer(folder)
    known, own_template = len(tokenizer), tokenizer.chat_template is not None
    lacking = _complete(tokenizer)
    if not own_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    added = f"{', '.join(lacking)} added, " if lacking else ""
    template = "its own chat template" if own_template else "no chat template, so ChatML"
    return tokenizer, f"the tokenizer of the model in {folder}: {known:,} tokens, {added}{template}"


def _complete(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Give the tokenizer an end of text, padding and, without a template, ChatML's tokens; return those it lacked."""
    vocabulary = tokenizer.get_vocab()
    if tokenizer.eos_token is None:
        tokenizer.eos_token = next((name for name in ENDS if name in vocabulary), END_OF_TEXT)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = next((name for name in PADS if name in vocabulary), PAD)
    wanted = [tokenizer.eos_token, tokenizer.pad_token, *(() if tokenizer.chat_template else (TURN_START, TURN_END))]
    lacking = [name for name in dict.fromkeys(wanted) if name not in vocabulary]
    tokenizer.add_tokens(lacking, special_tokens=True)
    return lacking


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of a local folder.

    Raises:
        UserError: there is none that can be read.
    """
    _check_file(folder)
    lighten_transformers()
    from transformers import AutoTokenizer

    try:
        with quietly():  # what panics prints a backtrace
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # tokenizers, in Rust, panics: an exception that is no Exception
        raise unreadable(folder, "tokenizer", e) from None


def _check_file(folder: Path) -> None:
    """Raise UserError unless ``folder``/tokenizer.json is JSON whose ids fit a table: tokenizers allocates one."""
    path = folder / "tokenizer.json"
    try:
        if not path.is_file() or path.stat().st_size > FILE_BYTES:
            raise UserError(f"{folder} holds no tokenizer.json of at most {FILE_BYTES >> 20} MiB.")
        content = json.loads(path.read_bytes())
        vocabulary = content["model"]["vocab"]
        ids = [*vocabulary.values()] if isinstance(vocabulary, dict) else [len(vocabulary)]
        ids += [token["id"] for token in content.get("added_tokens") or []]
        odd = next((i for i in ids if type(i) is not int or not 0 <= i < IDS), None)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
        raise unreadable(folder, "tokenizer", e) from None
    if odd is not None:
        raise UserError(f"{path} gives a token the id {odd!r}; ids are whole numbers from 0 to {IDS:,}.")


def unreadable(folder: Path, what: str, e: BaseException) -> UserError:
    """Return one line for a folder that transformers cannot read: broken files raise errors of any type and length."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    kind = [f"{type(e).__name__}:"] if isinstance(e, LookupError | TypeError | AttributeError) or not lines else []
    return UserError(f"{folder} holds no {what} that can be loaded: {' '.join([*kind, *lines[:2]])[:300]}")
