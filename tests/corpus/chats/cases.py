"""Small files in every public form, good and nearly good: N records each, and what they are recognized as."""

import csv
import gzip
import io
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

N = 20  # records of a file
PROSE = "There is enough prose here to be a document of its own, number {}."


NONE = MappingProxyType({})


class Case(NamedTuple):
    """``files``: name -> content. ``said``: of the refusal, or the form; ``rejected`` of N records, by reason."""

    kind: str
    files: dict[str, bytes]
    said: str
    rejected: Mapping[str, int] = NONE
    fields: Mapping[str, str] = NONE
    first: Any = None  # how the first record is read
    refused: bool = False
    dropped: Mapping[str, int] = NONE


def lines(make, count=N):
    return "".join(json.dumps(make(k)) + "\n" for k in range(count)).encode()


def array(make, indent=None):
    return json.dumps([make(k) for k in range(N)], indent=indent).encode()


def table(make, delimiter=",", count=N):
    out = io.StringIO()
    rows = [make(k) for k in range(count)]
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def parquet(make, count=N):
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([make(k) for k in range(count)]), out)
    return out.getvalue().to_pybytes()


def says(role, text):
    return {"role": role, "content": text}


def two(k):
    return [says("user", f"question {k}"), says("assistant", f"answer {k}")]


def part(text="q", kind="text"):
    return {"type": kind, "text": text}


IMAGE = part(kind="image_url")


def share(k, *more):
    own = [{"from": "human", "value": f"question {k}"}, {"from": "gpt", "value": f"answer {k}"}]
    return {"conversations": [*own, *more]}


def other(k):
    return [two(k)[0], says("assistant", f"no {k}")]


def pair(k, **names):
    own = {"prompt": f"question {k}", "chosen": f"answer {k}", "rejected": f"no {k}"}
    return {names.get(name, name): value for name, value in own.items()}


def labeled(k, completion, label):
    return {"prompt": f"question {k // 2}", "completion": completion, "label": label}


def hh(k, answer):
    return f"\n\nHuman: hello {k}\n\nAssistant: hi\n\nHuman: question {k}\n\nAssistant: {answer}"


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
CHAT = [says("user", "question 0"), says("assistant", "answer 0")]
PAIR = {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [says("assistant", "no 0")]}


def tools(k):
    return {
        "tools": [TOOL],
        "messages": [
            says("developer", "Be brief."), says("user", f"question {k}") | {"name": "Ann"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            says("tool", "3") | {"tool_call_id": "1"}, says("tool", "4"), says("assistant", "Three."),
        ],
    }  # fmt: skip


def scored(k, scores=(1, 5, 3)):
    completions = [{"response": f"answer {k} {score}", "overall_score": score} for score in scores]
    return {"instruction": f"question {k}", "models": ["m"], "completions": completions}


def rated(k):
    notes = {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "N/A"}}
    better = {"response": "rated high", "overall_score": 1.0, "annotations": notes}
    worse = {"response": "rated low", "overall_score": 10.0, "annotations": {"helpfulness": {"Rating": "1"}}}
    return {"instruction": f"question {k}", "completions": [worse, better]}


CASES = {
    # conversations
    "messages": Case("sft", {"a.jsonl": lines(lambda k: {"messages": two(k)})}, "messages", first=CHAT),
    "messages, array": Case("sft", {"a.json": array(lambda k: {"messages": two(k)}, 2)}, "messages", first=CHAT),
    "messages, Parquet": Case("sft", {"a.parquet": parquet(lambda k: {"messages": two(k)})}, "messages", first=CHAT),
    "messages, JSON in CSV": Case(
        "sft", {"a.csv": table(lambda k: {"messages": json.dumps(two(k))})}, "messages", first=CHAT
    ),
    "parts": Case(
        "sft",
        {"a.jsonl": lines(lambda k: {"messages": [says("user", [part(f"question {k}")]), two(k)[1]]})},
        "messages", first=CHAT,
    ),
    "parts, one an image": Case(
        "sft",
        {"a.jsonl": lines(lambda k: {"messages": [says("user", [IMAGE if k < 3 else part()]), two(k)[1]]})},
        "messages", {"a turn with a part that is not text": 3},
    ),
    "tools": Case("sft", {"a.jsonl": lines(tools)}, "messages"),
    "a system prompt that is empty": Case(
        "sft", {"a.jsonl": lines(lambda k: {"messages": [says("system", ""), *two(k)]})}, "messages", first=CHAT
    ),
    "an unknown role": Case(
        "sft", {"a.jsonl": lines(lambda k: {"messages": [says("robot" if k < 5 else "user", "q"), two(k)[1]]})},
        "messages", {"unknown role": 5},
    ),
    "ShareGPT": Case("sft", {"a.json": array(share)}, "ShareGPT", first=CHAT),
    "ShareGPT, ends with the user": Case(
        "sft", {"a.jsonl": lines(lambda k: share(k, {"from": "human", "value": "and?"}))}, "ShareGPT", first=CHAT
    ),
    "ShareGPT, no answer": Case(
        "sft", {"a.jsonl": lines(lambda k: {"conversations": share(k)["conversations"][: 1 if k < 4 else 2]})},
        "ShareGPT", {"no assistant turn": 4},
    ),
    "Alpaca": Case(
        "sft", {"a.json": array(lambda k: {"instruction": "question", "input": f"{k}", "output": f"answer {k}"}, 1)},
        "Alpaca", first=[says("user", "question\n\n0"), CHAT[1]],
    ),
    "Alpaca, no output": Case(
        "sft", {"a.json": array(lambda k: {"instruction": f"question {k}", "input": ""})}, "needs output or response",
        refused=True,
    ),
    "Dolly": Case(
        "sft", {"a.jsonl": lines(lambda k: {"instruction": f"question {k}", "context": "", "response": f"answer {k}"})},
        "Alpaca", first=CHAT,
    ),
    "prompt and completion": Case(
        "sft", {"a.jsonl.gz": gzip.compress(lines(lambda k: {"prompt": f"question {k}", "completion": f"answer {k}"}))},
        "prompt and completion", first=CHAT,
    ),
    "prompt and completion, messages": Case(
        "sft", {"a.jsonl": lines(lambda k: {"prompt": two(k)[:1], "completion": two(k)[1:]})},
        "prompt and completion", first=CHAT,
    ),
    "question and answer, semicolons": Case(
        "sft", {"a.csv": table(lambda k: {"question": f"question {k}", "answer": f"answer {k}"}, ";")},
        "prompt and completion", first=CHAT,
    ),
    "OpenOrca": Case(
        "sft",
        {"a.parquet": parquet(lambda k: {"system_prompt": "Be."} | pair(k, prompt="question", chosen="response"))},
        "prompt and completion", first=[says("system", "Be."), *CHAT],
    ),
    "other names": Case(
        "sft", {"a.tsv": table(lambda k: {"ask": f"question {k}", "reply": f"answer {k}"}, "\t")},
        "prompt and completion", fields={"prompt": "ask", "completion": "reply"}, first=CHAT,
    ),
    "other names, not given": Case(
        "sft", {"a.tsv": table(lambda k: {"ask": f"question {k}", "reply": f"answer {k}"}, "\t")},
        r"Fields: ask, reply; the nearest form is messages, which needs messages\. .* fields: {messages: ask}",
        refused=True,
    ),
    "half of another form": Case(
        "sft", {"a.jsonl": lines(share, 10), "b.jsonl": lines(lambda k: {"messages": two(k + 50)}, 10)},
        r"ShareGPT \(10\), messages \(10\)",
    ),
    # pairs
    "pairs": Case("preferences", {"a.jsonl": lines(pair)}, "prompt, chosen, rejected", first=PAIR),
    "UltraFeedback binarized": Case(
        "preferences",
        {"a.jsonl": lines(lambda k: pair(k) | {"chosen": two(k), "rejected": other(k)})},
        "prompt, chosen, rejected", first=PAIR,
    ),
    "a hub data set": Case(
        "preferences",
        {"README.md": b"# A set", "dataset_info.json": b"{}", "LICENSE": b"MIT",
         "data/train-00000-of-00001.parquet": parquet(pair, 15),
         "data/test_prefs-00000-of-00001.parquet": parquet(lambda k: pair(k + 50), 5)},
        "prompt, chosen, rejected", dropped={"held out": 5}, first=PAIR,
    ),
    "Orca": Case(
        "preferences", {"a.csv": table(lambda k: {"system": "Be."} | pair(k, prompt="question"))}, "Orca",
        first=PAIR | {"prompt": [says("system", "Be."), CHAT[0]]},
    ),
    "HH-RLHF": Case(
        "preferences", {"a.jsonl": lines(lambda k: {"chosen": hh(k, f"answer {k}"), "rejected": hh(k, f"no {k}")})},
        "HH-RLHF", first=PAIR | {"prompt": [says("user", "hello 0"), says("assistant", "hi"), CHAT[0]]},
    ),
    "HH-RLHF, nothing shared": Case(
        "preferences",
        {"a.jsonl": lines(lambda k: {"chosen": hh(k, "a"), "rejected": hh(k + 100 * (k < 2), "b")})},
        "HH-RLHF", {"chosen and rejected share no beginning that ends in a user's turn": 2},
    ),
    "implicit prompt": Case(
        "preferences",
        {"a.jsonl": lines(lambda k: {"chosen": two(k), "rejected": other(k)})},
        "implicit prompt", first=PAIR,
    ),
    "implicit prompt, text": Case(
        "preferences", {"a.jsonl": lines(lambda k: {"chosen": f"question {k} yes", "rejected": f"question {k} yet"})},
        "implicit prompt", first=PAIR | {"chosen": [says("assistant", "yes")], "rejected": [says("assistant", "yet")]},
    ),
    "OpenAI preferences": Case(
        "preferences",
        {"a.jsonl": lines(lambda k: {"input": {"messages": two(k)[:1]}, "preferred_output": two(k)[1:],
                                     "non_preferred_output": [says("assistant", f"no {k}")]})},
        "OpenAI preferences", first=PAIR,
    ),
    "UltraFeedback": Case(
        "preferences", {"a.jsonl": lines(scored)}, "UltraFeedback",
        first=PAIR | {"chosen": [says("assistant", "answer 0 5")], "rejected": [says("assistant", "answer 0 1")]},
    ),
    "UltraFeedback, rated": Case(
        "preferences", {"a.parquet": parquet(rated)}, "UltraFeedback",
        first=PAIR | {"chosen": [says("assistant", "rated high")], "rejected": [says("assistant", "rated low")]},
    ),
    "UltraFeedback, all alike": Case(
        "preferences", {"a.jsonl": lines(lambda k: scored(k, (2, 2) if k < 3 else (1, 2)))}, "UltraFeedback",
        {"all completions have one score": 3},
    ),
    "KTO": Case(
        "preferences",
        {"a.jsonl": lines(lambda k: labeled(k, ["answer 0", "no 0"][k % 2], k % 2 == 0))},
        "KTO", dropped={"joined to a pair": 10}, first=PAIR,
    ),
    "KTO, prompts with one label": Case(
        "preferences",
        {"a.csv": table(lambda k: labeled(k, f"answer {k}", k % 2 == 0 or k < 4))},
        "KTO", dropped={"joined to a pair": 8, "no answer of the other label": 4},
    ),
    "no rejected answer": Case(
        "preferences", {"a.jsonl": lines(lambda k: {"prompt": "q", "chosen": "a", "worse": "b"})},
        r"20 no rejected.* Fields: prompt, chosen, worse; .* needs rejected\. .*fields: {rejected: worse}",
        refused=True,
    ),
    "alpaca for pairs": Case(
        "preferences", {"a.csv": table(lambda k: {"instruction": "q", "output": "a"})}, "needs", refused=True
    ),
    # documents
    "text": Case("validation", {"a.jsonl": lines(lambda k: {"text": PROSE.format(k)})}, "text"),
    "content": Case("validation", {"a.parquet": parquet(lambda k: {"content": PROSE.format(k), "n": k})}, "content"),
    "body in CSV": Case("validation", {"a.csv": table(lambda k: {"body": PROSE.format(k) + '\n"x", y'})}, "body"),
    "an array": Case("validation", {"a.json.gz": gzip.compress(array(lambda k: {"text": PROSE.format(k)}, 1))}, "text"),
    "other names of documents": Case(
        "validation", {"a.jsonl": lines(lambda k: {"story": PROSE.format(k)})}, "story", fields={"text": "story"}
    ),
    "names not given": Case(
        "validation", {"a.jsonl": lines(lambda k: {"title": "t", "story": PROSE.format(k)})},
        "20 x missing text .* Fields: title, story. .* fields: {text: story}", refused=True,
    ),
    "a CSV with uneven rows": Case(
        "validation", {"a.csv": table(lambda k: {"text": PROSE.format(k)}, count=17) + b'a,b\n"ok"x\ncaf\xe9\n'},
        "text", {"other number of fields than the first line": 1, "malformed CSV": 1, "invalid UTF-8": 1},
    ),
    "a README beside data": Case(
        "validation", {"README.md": b"about", "a.jsonl": lines(lambda k: {"text": PROSE.format(k)})}, "text"
    ),
    # evaluations
    "MMLU": Case(
        "evals", {"mmlu.jsonl": lines(lambda k: {"question": f"q {k}", "choices": ["a", "b"], "answer": 1})},
        "multiple choice", first={"task": "mmlu", "format": "mc", "query": "q 0", "choices": ["a", "b"], "gold": 1},
    ),
    "ARC": Case(
        "evals",
        {"arc/test-00000-of-00001.parquet": parquet(
            lambda k: {"question": f"q {k}", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"})},
        "multiple choice", first={"task": "arc", "format": "mc", "query": "q 0", "choices": ["a", "b"], "gold": 1},
    ),
    "HellaSwag, a label missing": Case(
        "evals", {"a.jsonl": lines(lambda k: {"ctx": f"q {k}", "endings": ["a", "b"], "label": "1" if k > 1 else ""})},
        "multiple choice", {"gold is not the place of a choice": 2},
    ),
    "GSM8K": Case(
        "evals", {"gsm8k.jsonl": lines(lambda k: {"question": f"q {k}", "answer": "2 + 2 = 4\n#### 4"})},
        "question and answer", first={"task": "gsm8k", "format": "gen", "query": "q 0", "target": "4"},
    ),
    "evaluations without an answer": Case(
        "evals", {"a.jsonl": lines(lambda k: {"question": f"q {k}"})}, "needs", refused=True
    ),
}  # fmt: skip
