"""Encode conversations: the chat template with its special tokens, and messages as plain text.

Template and messages are encoded separately and their ids joined. So a special token's name in a message is text, and
the tokens before an answer are exactly those that generation starts from. A tokenizer that joins words to the space
before them (SentencePiece) gets the text between two special tokens, or up to an answer, at once.
"""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from functools import lru_cache
from itertools import groupby, islice, pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stages.contract.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1024  # conversations encoded at a time

# A message's stand-in while the template is rendered. A template that trims messages trims these spaces, too.
SPACE, OPEN, CLOSE = "\N{EM SPACE}", "\U000f0000", "\U000f0001"
PLACE = re.compile(f"({SPACE}?){OPEN}([0-9]+){CLOSE}({SPACE}?)")
AHEAD = "\U000f0002"  # in no text and no merge: encodes what follows it as the continuation of a text
GENERATION = re.compile(r"\{%-?\s*generation\b")
TODAY = date(2024, 7, 26)  # of templates that print the date, Llama's own default: a run must not depend on its day


class TurnPart(NamedTuple):
    """A part of a rendered template: its own ``ids``, its own ``text`` to encode, or the text of message ``turn``.

    ``trim_left`` and ``trim_right``: the template trims this text. ``spoken``: the assistant writes it.
    """

    spoken: bool
    ids: list[int]
    turn: int | None = None
    trim_left: bool = False
    trim_right: bool = False
    text: str = ""
    follows: bool = False  # encoded as the continuation of the text before it

    def words(self, messages: Sequence[dict[str, str]]) -> str:
        """Return the text of this part as the template prints it; "" for a part with ids."""
        if self.turn is None:
            return self.text
        text = messages[self.turn]["content"]
        text = text.lstrip() if self.trim_left else text
        return text.rstrip() if self.trim_right else text


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, with nothing added. A special token's name in a text is text."""
    # verbose=False: no warning about texts longer than the context, which are cut later
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    return tokenizer(texts, return_attention_mask=False, **options)["input_ids"] if texts else []


def encode_turns(
    tokenizer: "PreTrainedTokenizerBase", conversations: Iterable[list[dict[str, str]]], opening: bool = False
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield the token ids of each conversation in the chat template, and the positions that the assistant wrote.

    These positions are inside the template's ``{% generation %}`` blocks. In a template without such blocks, they go
    from where generation starts to the end of the turn. The token that ends the turn is among them. Position 0 never
    is, because no token predicts it.

    Args:
        conversations: lists of {role, content}.
        opening: append the start of the assistant's next answer.

    Raises:
        UserError: the template does not accept such turns.
    """
    waiting = iter(conversations)
    while batch := list(islice(waiting, BATCH)):
        frames = [_frame(tokenizer, tokenizer.chat_template, tuple(m["role"] for m in c), opening) for c in batch]
        pieces = [_pieces(tokenizer, frame, messages) for frame, messages in zip(frames, batch, strict=True)]
        texts = dict.fromkeys(AHEAD * p.follows + p.text for of_one in pieces for p in of_one if not p.ids)
        ids = dict(zip(texts, encode_texts(tokenizer, list(texts)), strict=True))
        ahead = len(encode_texts(tokenizer, [AHEAD])[0])
        for of_one in pieces:
            yield _joined([p.ids or ids[AHEAD * p.follows + p.text][ahead * p.follows :] for p in of_one], of_one)


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id of the token that ends the assistant's turn.

    Raises:
        UserError: the template ends it with none, so that a model cannot learn to stop.
    """
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (opening, _), (ids, written) = (*encode_turns(tokenizer, [talk[:1]], True), *encode_turns(tokenizer, [talk]))
    names = tokenizer.convert_ids_to_tokens(ids)
    ends = [ids[at] for at in written if at >= len(opening) and names[at] in _special(tokenizer)]
    if not ends:
        raise UserError(
            f"{tokenizer.name_or_path}: the chat template prints no special token after the assistant's turn, so a "
            "model cannot learn to stop. Add one to the template, such as the tokenizer's eos_token."
        )
    return ends[-1]


def _pieces(
    tokenizer: "PreTrainedTokenizerBase", frame: Sequence[TurnPart], messages: Sequence[dict[str, str]]
) -> list[TurnPart]:
    """Return the parts of a conversation, each with ids or with the text to encode."""
    if not _joins_words(tokenizer):
        return [part if part.ids else TurnPart(part.spoken, [], text=part.words(messages)) for part in frame]
    pieces: list[TurnPart] = []
    for (spoken, special), parts in groupby(frame, lambda part: (part.spoken, bool(part.ids))):
        if special:
            pieces += parts
        elif text := "".join(part.words(messages) for part in parts):
            follows = bool(pieces) and (not pieces[-1].ids or not _begins_anew(tokenizer))
            pieces.append(TurnPart(spoken, [], text=text, follows=follows))
    return pieces


@lru_cache(maxsize=64)
def _joins_words(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether the ids of a text depend on whether it follows another one."""
    alone, ahead, both = encode_texts(tokenizer, ["a", AHEAD, f"{AHEAD}a"])
    return both != ahead + alone


@lru_cache(maxsize=64)
def _begins_anew(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Return whether a text after a special token is encoded as at the beginning."""
    special = min(_special(tokenizer))
    return _template_ids(tokenizer, f"{special}a")[1:] == encode_texts(tokenizer, ["a"])[0]


@lru_cache(maxsize=64)
def _special(tokenizer: "PreTrainedTokenizerBase") -> frozenset[str]:
    """Return the special tokens of the vocabulary, also those without a role."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return frozenset(added | {*tokenizer.all_special_tokens})


def _joined(ids: list[list[int]], parts: Sequence[TurnPart]) -> tuple[list[int], np.ndarray]:
    ends = np.cumsum([0, *map(len, ids)])
    spoken = [np.arange(a, b) for (a, b), part in zip(pairwise(ends), parts, strict=True) if part.spoken]
    written = np.concatenate(spoken) if spoken else np.zeros(0, np.int64)
    return [token for some in ids for token in some], written[written > 0]


@lru_cache(maxsize=4096)
def _frame(
    tokenizer: "PreTrainedTokenizerBase", template: str, roles: tuple[str, ...], opening: bool
) -> tuple[TurnPart, ...]:
    """Return the parts of the template for turns of these roles; ``template`` is a key of the cache."""
    text, spans = _rendered(tokenizer, roles, opening)
    places = {place.start(): place for place in PLACE.finditer(text)}
    cuts = {0, len(text), *(bound for span in spans for bound in span)}
    cuts |= {bound for place in places.values() for bound in place.span()}
    parts = []
    for a, b in pairwise(sorted(cuts)):
        spoken = any(start <= a and b <= end for start, end in spans)
        if a in places:
            left, turn, right = places[a].groups()
            parts.append(TurnPart(spoken, [], int(turn), not left, not right))
        elif not _joins_words(tokenizer):
            parts.append(TurnPart(spoken, _template_ids(tokenizer, text[a:b])))
        else:
            for piece in filter(None, _split(tokenizer, text[a:b])):
                ids = _template_ids(tokenizer, piece) if piece in _special(tokenizer) else []
                parts.append(TurnPart(spoken, ids, text=piece))
    return tuple(parts)


def _split(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    """Split a part of a template at its special tokens."""
    return re.split(f"({_special_pattern(tokenizer)})", text)


def _special_pattern(tokenizer: "PreTrainedTokenizerBase") -> str:
    return "|".join(map(re.escape, sorted(_special(tokenizer), key=len, reverse=True)))


def _rendered(
    tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], opening: bool
) -> tuple[str, list[tuple[int, int]]]:
    """Render the template with a stand-in for each message; return it and the assistant's parts (character spans)."""
    marked = GENERATION.search(tokenizer.get_chat_template()) is not None
    text, spans = _render(tokenizer, roles, opening, marked)
    return text, spans if marked else _answers(tokenizer, roles, text)


def _answers(tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], text: str) -> list[tuple[int, int]]:
    """Find the assistant's parts of a template without generation blocks, as a model would write them.

    A part begins where the prompt for it ends, and ends with the next special token.
    """
    special, spans = re.compile(_special_pattern(tokenizer)), []
    places = {int(place[2]): place.span() for place in PLACE.finditer(text)}
    for i in (i for i, role in enumerate(roles) if role == "assistant" and i in places):
        start, stop = places[i]
        with contextlib.suppress(UserError):  # a template that needs a user's turn first
            prompt = _render(tokenizer, roles[:i], True, False)[0] if i else ""
            start = len(prompt) if prompt and len(prompt) <= start and text.startswith(prompt) else start
        following = min((a for a, _ in places.values() if a >= stop), default=len(text))
        end = special.search(text, stop, following)
        spans.append((start, end.end() if end else stop))
    return spans


def _render(
    tokenizer: "PreTrainedTokenizerBase", roles: tuple[str, ...], opening: bool, marked: bool
) -> tuple[str, list[tuple[int, int]]]:
    """Render the template for turns of these roles; ``marked``: return its generation blocks, too."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": role, "content": f"{SPACE}{OPEN}{i}{CLOSE}{SPACE}"} for i, role in enumerate(roles)]
    try:
        (text,), spans = render_jinja_template(
            [messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=marked,
            add_generation_prompt=opening,
            strftime_now=TODAY.strftime,
            **tokenizer.special_tokens_map,
        )
    except (TemplateError, ValueError) as e:
        shown = ", ".join(roles[:4]) + (", …" if len(roles) > 4 else "")
        raise UserError(f"{tokenizer.name_or_path}: the chat template cannot print turns of {shown}: {e}") from None
    return text, spans[0] if marked else []


def _template_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    options = {"add_special_tokens": False, "split_special_tokens": False, "verbose": False}
    return tokenizer(text, **options)["input_ids"]
