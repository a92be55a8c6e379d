"""Rules asked of languages that they were not made for."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.params import load_params
from stages.corpus.filtering.applying import Judge, judge
from stages.corpus.filtering.contamination import index
from stages.corpus.text.words import column, texts
from stages.corpus.text.writing import closed, spaced, writing
from tests.corpus.helpers import table

SENTENCES = json.loads(Path(__file__).with_name("sentences.json").read_text(encoding="utf-8"))
WEB = {"c4": {"apply": True, "final_punctuation": True}, "fineweb": {"apply": True, "max_newlines": 1.0}}


def judged(strings: list[str], **changes):
    params = load_params().filter
    for name, value in changes.items():
        old = getattr(params, name)
        changes[name] = old.model_copy(update=value) if isinstance(value, dict) else value
    return judge(table(strings), Judge(params.model_copy(update=changes), index([["never said"]], 13), None))


@pytest.mark.parametrize("definitions", ["verdict", "published"])
@pytest.mark.parametrize("rules", [{}, WEB], ids=["gopher", "web"])
def test_who_lists_a_language_gets_it_with_its_text_as_written(definitions, rules):
    strings = list(SENTENCES.values())
    found = judged(strings, languages=list(SENTENCES), definitions=definitions, min_mean_word_length=3, **rules)
    assert found.dropped.select(["id", "reason", "value"]).to_pylist() == []
    assert found.kept["text"].to_pylist() == strings
    only_english = judged(strings, definitions=definitions, **rules)
    assert only_english.kept["text"].to_pylist() == [SENTENCES["en"]]


def test_rules_that_fit_any_language_are_asked_of_all():
    zh, de = SENTENCES["zh"], SENTENCES["de"]
    bad = [zh[:25], "\n".join([de[:60]] * 12), "".join(zh[:17] * 12), "\n".join(f"- {s}" for s in de.split(". "))]
    found = judged(bad, languages=["de", "zh"])
    assert found.dropped["reason"].to_pylist() == ["words", "duplicate_lines", "top_3_gram", "bullet_lines"]


def test_c4_takes_lines_out_of_a_text_without_spaces_and_leaves_no_trace():
    lines = SENTENCES["zh"].replace("。", "。\n").strip().split("\n")
    text = "\n".join([*lines[:3], "请阅读我们的隐私政策。", "好。", "没有句号的一行文字", *lines[3:]])
    c4 = {"apply": True, "final_punctuation": True, "drop_lines_with": ["隐私政策"]}
    found = judged([text], languages=["zh"], c4=c4)
    assert found.kept["text"].to_pylist() == ["\n".join(lines)]
    assert found.figures["lines"].tolist() == [len(lines) + 3, 1, 0, 1, 1]
    assert found.figures["line_examples"][:, 0].tolist() == ["好。", "", "请阅读我们的隐私政策。", "没有句号的一行文字"]


def test_english_is_judged_the_same_beside_other_languages():
    strings = [SENTENCES["en"], SENTENCES["en"][:80], "stop " * 40, SENTENCES["de"]]
    alone, beside = judged(strings[:3]), judged(strings, languages=["en", "de"])
    assert beside.kept["id"].to_pylist() == [*alone.kept["id"].to_pylist(), "d00003"]
    assert beside.dropped.equals(alone.dropped)


@given(st.lists(st.text(st.sampled_from("a5 \n今天。「」กำ\u200b😀𠀀é"), max_size=12), max_size=3))
def test_what_is_spaced_can_be_closed_again(strings):
    documents = texts(table(strings)["text"])
    found = spaced(documents)
    assert column(closed(found)).to_pylist() == strings
    assert all("今天" not in text and "今a" not in text and "a今" not in text for text in column(found).to_pylist())


def test_a_character_is_a_word_and_keeps_its_punctuation():
    found = column(spaced(texts(table(["我们用Python 3。好、是「日本」"])["text"]))).to_pylist()[0]
    assert found.split() == ["我", "们", "用", "Python", "3。", "好、", "是「", "日", "本」"]
    assert writing("ja").spaces is False and writing("de").spaces and not writing("th").marks
    assert np.diff(spaced(texts(table(["", "a"])["text"])).offsets).tolist() == [0, 1]
