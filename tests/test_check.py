"""`check` reads what later stages read and stops before anything trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stages import check
from stages.contract import Run, UserError
from stages.contract.params import Params, load_params
from stages.contract.tracking.spool import NoSpool

PROSE = "There is enough prose here to be a document of its own."


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Params whose sources are files of ``tmp_path`` with four good records each."""
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    good = {
        "sft": {"messages": chat, "split": "train"},
        "preferences": {"prompt": "q", "chosen": "a", "rejected": "b", "split": "train"},
        "evals": {"task": "t", "format": "cloze", "query": "q", "target": "a"},
        "validation": {"text": PROSE},
        "pretrain": {"text": PROSE},
    }
    raw = load_params().model_dump()
    for name, record in good.items():
        (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(record)}\n" * 4)
        raw["data"][name]["path"] = f"{name}.jsonl"
    raw["data"]["quality"]["path"] = "quality"
    (tmp_path / "quality").mkdir()
    monkeypatch.chdir(tmp_path)
    return raw


def ran(raw: dict) -> dict:
    folders = Path("out/check"), Path("reports/check"), Path("scratch")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    check.main(Run("check", Params(**raw), *folders, NoSpool()))
    return json.loads(Path("reports/check/metrics.json").read_text())["records"]


def test_every_source_is_accounted_for_and_the_out_never_changes(data, capsys):
    assert ran(data).keys() == {"data.sft", "data.preferences", "data.evals", "data.validation"}
    passed = Path("out/check/passed.json").read_bytes()
    with Path("evals.jsonl").open("a") as file:
        file.write('{"task": "t", "format": ["mc"]}\n')
    Path("quality/a.jsonl").write_text('{"text": "good", "label": "good"}\n{"text": "bad", "label": "bad"}\n' * 9)
    assert ran(data)["data.evals"]["rejected"] == {"format is not a text": 1, "total": 1}
    assert Path("out/check/passed.json").read_bytes() == passed
    lines = capsys.readouterr().out.splitlines()
    assert "data.preferences: prompt, chosen, rejected, 4 pairs" in lines
    assert "data.pretrain: text, 0.0 MB in 1 file; dedup counts the documents" in lines
    assert (
        len(lines) == 2 * 4 + 1 + 2 * 5 + 1 and "5 records read, 4 used, 1 rejected (1 format is not a text)" in lines
    )


@pytest.mark.parametrize(
    ("source", "lines", "said"),
    [
        ("sft", ['{"messages": 3}'] * 9, r"data.sft: 13 conversations read, 4 used, 9 rejected .* above max_rejected"),
        ("evals", ['{"task": "t", "format": {}}'] * 9, r"data.evals: 13 records read, 4 used, 9 rejected"),
        ("validation", ["{}"] * 9, r"data.validation: 13 documents read, 4 used, 9 rejected \(9 missing text\)"),
        ("preferences", ['{"prompt": "q", "chosen": "c", "rejected": "b", "split": "test"}'],
         r"preferences.jsonl holds nothing to train on: 5 records read, 0 used, 5 dropped \(1 held out, 4 prompt is"),
    ],
)  # fmt: skip
def test_wrong_data_stops_in_one_line(data, source, lines, said):
    with Path(f"{source}.jsonl").open("a") as file:
        file.write("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=said) as error:
        ran(data)
    assert "\n" not in str(error.value)


def test_weights_that_match_no_file_stop_before_training(data):
    data["data"]["sft"]["weights"] = {"web/*": 0.5}
    with pytest.raises(UserError, match="matches no file"):
        ran(data)


def pair(chosen: object, rejected: object = "b", prompt: object = "q") -> str:
    return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected, "split": "train"})


TO_ASSISTANT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"left": "a", "right": "b"}'] * 4, "preferences.jsonl holds nothing to train on: .* Fields: left, right"),
        ([pair("b")] * 4, r"4 rejected \(4 chosen and rejected are the same\)"),
        ([pair("a", prompt=TO_ASSISTANT)] * 4, r"4 rejected \(4 prompt: does not end in a user's turn\)"),
        (['{"prompt": "q", "completion": "a"}'] * 4, "holds nothing to train on"),
        ([pair("a")] + [pair("b")] * 9, r"data.preferences: 10 pairs read, 1 used, 9 rejected .* above max_rejected"),
        (["\x93\x00\x07"] * 4, "no readable record"),
        ([], "no readable record"),
    ],
)
def test_wrong_pairs_are_refused_before_the_stage(data, lines, said):
    check.refuse_wrong_examples(Params(**data))
    Path("preferences.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=said) as error:
        check.refuse_wrong_examples(Params(**data))
    assert "\n" not in str(error.value)


def test_sources_too_large_to_be_read_twice_are_left_to_the_stage(data, monkeypatch):
    Path("sft.jsonl").write_text('{"left": 1}')
    Path("preferences.jsonl").unlink()
    with pytest.raises(UserError, match=r"sft.jsonl holds nothing to train on.*\npreferences.jsonl: no such file"):
        check.refuse_wrong_examples(Params(**data))
    monkeypatch.setattr(check, "EARLY_BYTES", 1)
    with pytest.raises(UserError, match=r"^preferences.jsonl: no such file"):
        check.refuse_wrong_examples(Params(**data))


def test_it_imports_neither_torch_nor_transformers():
    """It is there to be quick, and the refusal before the stage must not compile kernels."""
    code = (
        "import sys, stages.check, stages.corpus.chats.mixture\n"
        "assert 'numba' not in sys.modules\n"
        "import stages.corpus.chats.leaks, stages.corpus.filtering.quality\n"
        "import stages.evaluation.measuring.examples\n"
        "assert not {'torch', 'transformers', 'lm_eval', 'datasets'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
