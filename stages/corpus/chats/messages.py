"""Bring the turns of a conversation into one form: {role, content}, of system, user and assistant.

Calls of tools and their results become text, which every chat template can print. Not for the form of a record:
see `forms`.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from stages.corpus.chats.recognition import Unusable, first_of

Messages = list[dict[str, str]]

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "call",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}  # fmt: skip
TEXT_PARTS = ("text", "input_text", "output_text")
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
NO_LIST = "messages are not a list of turns"
TOOLS = (
    "These tools can be called, each described by a JSON object:\n<tools>\n{}\n</tools>\n"
    'A call has this form: <tool_call>{{"name": NAME, "arguments": OBJECT}}</tool_call>'
)


def to_messages(turns: Any, tools: Any = None) -> Messages:
    """Return the turns of a conversation, as OpenAI, ShareGPT or others write them.

    Empty system turns are dropped; the results of tools, of which several may follow each other, are one user's turn.

    Args:
        turns: a list of objects, or JSON of one.
        tools: descriptions of tools, or JSON of them: they are added to the system turn.

    Raises:
        Unusable: not a list, a turn without text, an unknown role, an empty turn.
    """
    turns = from_json(turns)
    if not isinstance(turns, list) or not turns:
        raise Unusable(NO_LIST)
    messages: Messages = []
    before = ""
    for turn in turns:
        for role, content in _turn(turn):
            if not content.strip():
                if role == "system":
                    continue
                raise Unusable("empty turn")
            if role == "tool" and before == "tool":
                messages[-1]["content"] += f"\n{content}"
            else:
                messages.append({"role": "user" if role == "tool" else role, "content": content})
            before = role
    return _with_tools(messages, from_json(tools)) if tools else messages


def turns_of(value: Any, role: str) -> Messages:
    """Return ``value`` as turns: a list of them, a transcript of Human and Assistant, or one turn of ``role``."""
    inner = from_json(value)
    if not isinstance(value, str) or (isinstance(inner, list) and inner and isinstance(inner[0], Mapping)):
        return to_messages(inner)
    if TRANSCRIPT.match(value):
        return from_transcript(value)
    if not value.strip():
        raise Unusable("empty turn")
    return [{"role": role, "content": value}]


def from_transcript(text: str) -> Messages:
    """Return the turns of a transcript, each after a blank line and "Human:" or "Assistant:".

    An empty turn at the end is dropped.

    Raises:
        Unusable: an empty turn elsewhere.
    """
    _, *parts = TRANSCRIPT.split(text)
    roles = ("user" if name == "Human" else "assistant" for name in parts[::2])
    messages = [{"role": role, "content": said.strip()} for role, said in zip(roles, parts[1::2], strict=True)]
    if messages and not messages[-1]["content"]:
        messages.pop()
    if not all(message["content"] for message in messages):
        raise Unusable("empty turn")
    return messages


def from_json(value: Any) -> Any:
    """Return the list or object of which ``value`` is the JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            inner = json.loads(value)
            json.dumps(inner, ensure_ascii=False).encode()  # half a surrogate pair cannot be encoded
            return inner
        except (ValueError, RecursionError):
            return value
    return value


def _turn(turn: Any) -> Iterable[tuple[str, str]]:
    """Yield role and content of a turn; of two, if it is a question with its answer."""
    if not isinstance(turn, Mapping):
        raise Unusable("a turn without text")
    name, content = first_of(turn, "role|from|speaker"), first_of(turn, "content|value|text")
    calls = first_of(turn, "tool_calls|function_call")
    if name is None and turn.get("input") is not None and turn.get("output") is not None:
        yield "user", _text(turn["input"])
        yield "assistant", _text(turn["output"])
        return
    text = "" if content is None and calls else _text(content)
    role = ROLES.get(name.lower()) if isinstance(name, str) else None
    if role is None:
        raise Unusable("unknown role")
    if role == "call":
        yield "assistant", _calls(from_json(text))
    elif role == "tool":
        yield role, f"<tool_response>\n{text}\n</tool_response>" if text.strip() else ""
    else:
        yield role, "\n".join(filter(None, (text, _calls(calls)))) if calls else text


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise Unusable("a turn without text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS else part
        if not isinstance(text, str):
            raise Unusable("a turn with a part that is not text")
        texts.append(text)
    return "".join(texts)


def _calls(calls: Any) -> str:
    """Return calls of tools as text: JSON in tags that models of several makers know."""
    texts = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = call.get("function") or call if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
            raise Unusable("a call of a tool without a name")
        text = _json({"name": call["name"], "arguments": from_json(call.get("arguments")) or {}})
        texts.append(f"<tool_call>\n{text}\n</tool_call>")
    return "\n".join(texts)


def _with_tools(messages: Messages, tools: Any) -> Messages:
    if not isinstance(tools, list):
        raise Unusable("tools are not a list")
    text = TOOLS.format("\n".join(map(_json, tools)))
    if messages and messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        raise Unusable("tools that JSON cannot write") from None
