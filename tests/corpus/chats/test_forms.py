"""Small files in every public form, through the readers and through `check`."""

import json
import re

import pytest

from stages import check
from stages.contract import UserError
from stages.contract.params import Params, load_params
from stages.corpus.chats.conversations import read_conversations, read_preferences
from stages.corpus.reading.documents import read_documents
from stages.evaluation.measuring.evaluations import read_evaluations
from tests.corpus.chats.cases import CASES, PAIR, PROSE, TOOL, N, lines, pair, says, tools, two
from tests.corpus.helpers import source, stage_run

READ = {"sft": read_conversations, "preferences": read_preferences}


@pytest.fixture
def params(tmp_path, monkeypatch):
    """Params whose sources are folders of ``tmp_path`` with good records."""
    good = {
        "sft": lambda k: {"messages": two(k + 1000)},
        "preferences": lambda k: pair(k + 1000),
        "evals": lambda k: {"task": "t", "format": "cloze", "query": "q", "target": "a"},
        "validation": lambda k: {"text": PROSE.format(k + 1000)},
        "pretrain": lambda k: {"text": PROSE.format(k + 2000)},
    }
    raw = load_params().model_dump()
    for name, make in good.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "good.jsonl").write_bytes(lines(make))
        raw["data"][name] |= {"path": name, "files": "**/*"}
    raw["data"]["quality"]["path"] = "quality"
    monkeypatch.chdir(tmp_path)
    return raw


def write(case, folder):
    (folder / "good.jsonl").unlink(missing_ok=True)
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", CASES)
def test_check_recognizes_or_refuses(name, params, tmp_path, capsys):
    case = CASES[name]
    write(case, tmp_path / case.kind)
    params["data"][case.kind]["fields"] = dict(case.fields)
    run = stage_run("check", Params(**params), tmp_path)
    if case.refused:
        with pytest.raises(UserError, match=case.said) as error:
            check.main(run)
        assert "\n" not in str(error.value)
        return
    check.main(run)
    counted = json.loads((run.reports / "metrics.json").read_text())["records"][f"data.{case.kind}"]
    assert counted["read"] == N and counted["rejected"] == {"total": sum(case.rejected.values()), **case.rejected}
    assert case.dropped.items() <= counted["dropped"].items()
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"data.{case.kind}: "))
    assert re.match(rf"data.{case.kind}: {case.said}, ", line), line


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.refused])
def test_readers_give_the_records(name, tmp_path):
    case = CASES[name]
    folder = tmp_path / "set"
    folder.mkdir()
    write(case, folder)
    where = source(folder).model_copy(update={"fields": dict(case.fields)})
    good = N - sum(case.rejected.values())
    if case.kind == "validation":
        assert sorted(text.split(".")[0] for text in read_documents(where).table["text"].to_pylist()) == sorted(
            PROSE.format(k).split(".")[0] for k in range(good)
        )
        return
    if case.kind == "evals":
        found = read_evaluations(where)
        assert len(found.values) == good and found.rejected == case.rejected
        assert case.first is None or case.first.items() <= found.values[0].items()
        return
    found = READ[case.kind](where)
    lost = sum(count for why, count in case.dropped.items() if why != "held out")
    records = [*found.train, *found.test]
    assert len(records) == good - lost and found.rejected == case.rejected
    values = [r["messages"] if case.kind == "sft" else {key: r[key] for key in PAIR} for r in records]
    assert case.first is None or case.first in values


def test_calls_of_tools_and_their_results_are_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(tools))
    found = read_conversations(source(tmp_path))
    messages = (found.train + found.test)[0]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[0]["content"].startswith("Be brief.\n\n") and json.dumps(TOOL) in messages[0]["content"]
    assert messages[2]["content"] == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    assert messages[3]["content"].count("<tool_response>") == 2


def test_conversations_are_used_up_to_their_last_answer(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(CASES["ShareGPT, ends with the user"].files["a.jsonl"])
    found = read_conversations(source(tmp_path))
    assert found.shortened == N and all(len(talk["messages"]) == 2 for talk in found.train + found.test)


def test_shared_beginnings_are_those_of_trl(tmp_path):
    """Whole turns only: TRL may leave an assistant's turn at the end of a prompt."""
    from trl.data_utils import extract_prompt

    record = {"chosen": [*two(1), *two(2)], "rejected": [*two(1), two(2)[0], says("assistant", "no")]}
    (tmp_path / "a.jsonl").write_bytes(lines(lambda k: record))
    found = read_preferences(source(tmp_path))
    expected = extract_prompt(record)
    assert {key: (found.train + found.test)[0][key] for key in expected} == expected
