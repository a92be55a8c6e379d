"""The public forms of conversations and preferences, one row of a table for each.

To add one: a row, a converter to `messages` or `{prompt, chosen, rejected}`, a case in tests/corpus/chats/cases.py.
"""

from itertools import takewhile
from statistics import mean
from typing import Any

from stages.corpus.chats.messages import NO_LIST, TRANSCRIPT, Messages, to_messages, turns_of
from stages.corpus.chats.recognition import Form, Unusable, Value, first_of

ASKED = "prompt|question|instruction|query|input"
ANSWERED = "completion|response|answer|output"
SYSTEM = "system|system_prompt"
PAIRED = ("chosen", "rejected")
LABELS = {"true": True, "1": True, "false": False, "0": False}


def _messages(value: Value) -> Value:
    messages = to_messages(first_of(value, "messages|conversations|conversation"), first_of(value, "tools|functions"))
    return {"messages": _with_system(value, messages)}


def _alpaca(value: Value) -> Value:
    asked, more, answer = value["instruction"], first_of(value, "input|context"), first_of(value, "output|response")
    if not all(isinstance(text, str) for text in (asked, more or "", answer)):
        raise Unusable("instruction, input or output is not a text")
    history = [{"input": turn[0], "output": turn[1]} for turn in value.get("history") or [] if len(turn) == 2]
    earlier = to_messages(history) if history else []
    question = f"{asked}\n\n{more}" if more and more.strip() else asked
    messages = [*earlier, *turns_of(question, "user"), *turns_of(answer, "assistant")]
    return {"messages": _with_system(value, messages)}


def _completion(value: Value) -> Value:
    messages = [*turns_of(first_of(value, ASKED), "user"), *turns_of(first_of(value, ANSWERED), "assistant")]
    return {"messages": _with_system(value, messages)}


def _pair(value: Value) -> Value:
    """Return a pair of its own fields; answers that repeat the prompt at their head lose it."""
    sides = {"prompt": _with_system(value, _side("prompt", first_of(value, ASKED), "user"))}
    for field in PAIRED:
        side = _side(field, value[field], "assistant")
        repeated = next((p for p in (sides["prompt"], _asked(sides["prompt"])) if p and side[: len(p)] == p), [])
        sides[field] = side[len(repeated) :] if len(side) > len(repeated) else side
    return sides


def _implicit(value: Value) -> Value:
    """Return a pair whose prompt is the beginning that both answers share."""
    if all(isinstance(value[field], str) and not TRANSCRIPT.match(value[field]) for field in PAIRED):
        return _implicit_text(*(value[field] for field in PAIRED))
    chosen, rejected = (_side(field, value[field], "assistant") for field in PAIRED)
    shared = [a for a, _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))]
    shared = shared[: min(len(chosen), len(rejected)) - 1]
    while shared and shared[-1]["role"] != "user":
        shared.pop()
    if not shared:
        raise Unusable("chosen and rejected share no beginning that ends in a user's turn")
    return {"prompt": shared, "chosen": chosen[len(shared) :], "rejected": rejected[len(shared) :]}


def _implicit_text(chosen: str, rejected: str) -> Value:
    if chosen == rejected:
        raise Unusable("chosen and rejected are the same")
    length = len([a for a, _ in takewhile(lambda two: two[0] == two[1], zip(chosen, rejected, strict=False))])
    while length and not chosen[length - 1].isspace():  # no word is divided
        length -= 1
    if not chosen[:length].strip():
        raise Unusable("chosen and rejected share no beginning")
    return _pair({"prompt": chosen[:length].rstrip(), "chosen": chosen[length:], "rejected": rejected[length:]})


def _openai(value: Value) -> Value:
    asked = value["input"]
    tools = asked.get("tools") if isinstance(asked, dict) else None
    prompt = to_messages(asked.get("messages") if isinstance(asked, dict) else asked, tools)
    chosen, rejected = (to_messages(value[field]) for field in ("preferred_output", "non_preferred_output"))
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _scored(value: Value) -> Value:
    """Return the best and the worst of the scored completions, the first of equals."""
    answers = []
    for completion in value["completions"] if isinstance(value["completions"], list) else []:
        text = first_of(completion, "response|completion|content|text") if isinstance(completion, dict) else None
        if isinstance(text, str) and (score := _score(completion)) is not None and text.strip():
            answers.append((score, text))
    if len(answers) < 2:
        raise Unusable("fewer than two completions with a score")
    best, worst = max(answers, key=lambda a: a[0]), min(answers, key=lambda a: a[0])
    if best[0] == worst[0]:
        raise Unusable("all completions have one score")
    return _pair({**value, "chosen": best[1], "rejected": worst[1]})


def _score(completion: Value) -> float | None:
    """Return the mean rating, or else the score.

    UltraFeedback's overall_score is 10 where 1 was meant (Argilla's notes on ultrafeedback-binarized-preferences), so
    that the mean of its ratings comes first.
    """
    notes = completion.get("annotations")
    ratings = [_number(first_of(note, "Rating")) for note in notes.values() if isinstance(note, dict)] if notes else []
    known = [rating for rating in ratings if rating is not None]
    if known:
        return mean(known)
    names = "fine-grained_score", "overall_score", "score"
    return next((score for name in names if (score := _number(completion.get(name))) is not None), None)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None  # not NaN either


def _labeled(value: Value) -> Value:
    """Return prompt, completion and label, of which `conversations` makes pairs."""
    label = LABELS.get(str(value["label"]).lower())
    if label is None:
        raise Unusable("label is neither true nor false")
    prompt = _side("prompt", first_of(value, ASKED), "user")
    completion = _side("completion", first_of(value, ANSWERED), "assistant")
    return {"prompt": _with_system(value, prompt), "completion": completion, "label": label}


def _side(field: str, value: Any, role: str) -> Messages:
    try:
        return turns_of(value, role)
    except Unusable as e:
        raise Unusable(f"{field}: {e}") from None


def _with_system(value: Value, messages: Messages) -> Messages:
    """Return ``messages`` after the system prompt in a field of the record, unless they begin with one."""
    text = first_of(value, SYSTEM)
    if text is None or (messages and messages[0]["role"] == "system"):
        return messages
    if not isinstance(text, str):
        raise Unusable(NO_LIST if isinstance(text, list) else "system is not a text")
    return [{"role": "system", "content": text}, *messages] if text.strip() else messages


def _asked(prompt: Messages) -> Messages:
    return prompt[1:] if prompt[0]["role"] == "system" else prompt


def _is_transcript(value: Value) -> bool:
    return all(isinstance(value[field], str) and TRANSCRIPT.match(value[field]) for field in PAIRED)


CONVERSATIONS = (
    Form("messages", "messages", _messages),
    Form("ShareGPT", "conversations|conversation", _messages),
    Form("Alpaca", "instruction output|response", _alpaca),
    Form("prompt and completion", f"{ASKED} {ANSWERED}", _completion),
)
PAIRS = (
    Form("prompt, chosen, rejected", "prompt chosen rejected", _pair),
    Form("Orca", "question|instruction|query|input chosen rejected", _pair),
    Form("OpenAI preferences", "input preferred_output non_preferred_output", _openai),
    Form("HH-RLHF", "chosen rejected", _implicit, _is_transcript),
    Form("implicit prompt", "chosen rejected", _implicit),
    Form("UltraFeedback", "instruction|prompt completions", _scored),
    Form("KTO", f"{ASKED} {ANSWERED} label", _labeled),
)
