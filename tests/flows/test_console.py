import sys
from types import SimpleNamespace

import pytest

from flows.console import closing_text, plan_table, stage_line
from flows.planned import Stage

STAGES = [
    Stage("dedup", (), ()),
    Stage("pretrain", ("dedup",), ("seed changed",)),
    Stage("sft", ("pretrain",), ("after pretrain",)),
]


def test_plan_says_how_long_each_stage_took_the_last_time():
    assert plan_table(STAGES, {"dedup": 9.0, "pretrain": 92.0, "sft": 20.0}).splitlines() == [
        "Plan: 2 of 3 stages to run, 1 cached; about 1m52s by the last times",
        "  dedup     cached",
        "  pretrain  run     1m32s  seed changed",
        "  sft       run     20s    after pretrain",
    ]


def test_unknown_time_stays_blank_and_is_counted():
    assert plan_table(STAGES, {"sft": 20.0}).splitlines() == [
        "Plan: 2 of 3 stages to run, 1 cached; about 20s by the last times, and 1 of unknown time",
        "  dedup     cached",
        "  pretrain  run          seed changed",
        "  sft       run     20s  after pretrain",
    ]


def test_without_any_known_time_there_is_no_column():
    assert plan_table(STAGES, {}).splitlines()[2] == "  pretrain  run     seed changed"


def test_closing_table_is_shown_only_with_the_models_it_is_of(tmp_path):
    (tmp_path / "reports" / "eval").mkdir(parents=True)
    (tmp_path / "reports" / "eval" / "summary.txt").write_text("What was made\n")
    assert closing_text(tmp_path, [*STAGES, Stage("eval", ("sft",), ())]).startswith("What was made\n\nEvery metric:")
    assert closing_text(tmp_path, STAGES).startswith("reports/eval/summary.txt is of an earlier run.")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), UnicodeEncodeError("ascii", "→", 0, 1, "no")])
def test_where_nothing_can_be_printed_the_stage_goes_on(monkeypatch, error):
    def write(text):
        raise error

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=write))
    stage_line(5, "sft", "a line")
