import re
import unicodedata
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.contract.params import load_params
from stages.corpus.filtering import rules
from stages.corpus.filtering.gopher import QUALITY, REPETITION, STOP_WORDS, gopher_measures
from stages.corpus.filtering.rules import REPETITION_LIMITS, check_limits, decide_documents, limits, word_measures
from stages.corpus.text.words import texts
from tests.corpus.helpers import table


def measured(*strings: str, published: bool = False) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in gopher_measures(texts(table(strings)["text"]), published).items()}


def reference(text: str) -> dict[str, float]:
    """The same definitions, slowly."""
    words = text.split()
    lines = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    out = dict.fromkeys(QUALITY + REPETITION, 0.0)
    out["words"] = len(words)
    if not words:
        return out
    out["mean_word_length"] = sum(map(len, words)) / len(words)
    dots = sum(len(run) >= 3 for run in re.findall(r"\.+", text))
    out["symbol_ratio"] = max(text.count("#"), dots + text.count("…")) / len(words)
    out["bullet_lines"] = sum(line[0] in "-*•‣◦▪·" for line in lines) / len(lines)
    out["ellipsis_lines"] = sum(line.endswith(("...", "…")) for line in lines) / len(lines)
    out["alphabetic_words"] = sum(any(c.isalpha() for c in word) for word in words) / len(words)
    letters = {"".join(c.lower() if c.isascii() else c for c in word if c.isalpha()) for word in words}
    out["stop_words"] = len(letters & set(STOP_WORDS))

    paragraphs, block = [], []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            block.append(re.sub(r"\s", " ", re.sub(r"\s+", lambda m: " " * len(m.group()), line.strip())))
        elif block:
            paragraphs.append(block)
            block = []
    written = [(" ".join(line.split()), len(line)) for b in paragraphs for line in b if any(map(str.isalpha, line))]
    blocks = [
        (tuple(" ".join(line.split()) for line in b), sum(map(len, b)))
        for b in paragraphs
        if any(any(map(str.isalpha, line)) for line in b)
    ]
    for name, elements in (("line", written), ("paragraph", blocks)):
        seen, again, inside = set(), 0, 0
        for element, length in elements:
            again += element in seen
            inside += length * (element in seen)
            seen.add(element)
        if elements:
            out[f"duplicate_{name}s"] = again / len(elements)
            out[f"duplicate_{name}_characters"] = inside / len(text)
    for n in (2, 3, 4):
        grams = Counter(tuple(words[k : k + n]) for k in range(len(words) - n + 1))
        most = max(grams.values(), default=0)
        if most > 1:
            out[f"top_{n}_gram"] = max(len(" ".join(g)) * c for g, c in grams.items() if c == most) / len(text)
    return out | repeated_ngrams(words, text)


def repeated_ngrams(words: list[str], text: str) -> dict[str, float]:
    out = {}
    for n in range(5, 11):
        seen, inside, k = set(), 0, 0
        while k <= len(words) - n:
            gram = tuple(words[k : k + n])
            if gram in seen:
                inside += len("".join(gram))
                k += n
            else:
                seen.add(gram)
                k += 1
        out[f"duplicate_{n}_grams"] = inside / len(text)
    return out


def published(text: str) -> dict[str, float]:
    """The definitions of `stages.corpus.filtering.published`, slowly."""
    words, lines = text.split(), text.splitlines()
    symbol = lambda c: unicodedata.category(c)[0] == "P" or (c.isascii() and not c.isalnum())  # noqa: E731
    counted = [word for word in words if not all(map(symbol, word))]
    out = dict.fromkeys(QUALITY + REPETITION, 0.0) | {"words": len(counted)}
    if counted:
        out["mean_word_length"] = sum(map(len, counted)) / len(counted)
    if words:
        out["symbol_ratio"] = max(text.count("#"), text.count("...") + text.count("…")) / len(words)
        out["bullet_lines"] = sum(line.lstrip()[:1] in ("-", "•") for line in lines) / len(lines)
        out["ellipsis_lines"] = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        out["alphabetic_words"] = sum(any(map(str.isalpha, word)) for word in words) / len(words)
        out["stop_words"] = len(set(words) & set(STOP_WORDS))
    if not text:
        return out
    parts = {"line": re.split(r"\n+", text), "paragraph": re.split(r"\n{2,}", text.strip())}
    for name, elements in parts.items():
        again = [element for k, element in enumerate(elements) if element in elements[:k]]
        out[f"duplicate_{name}s"] = len(again) / len(elements)
        out[f"duplicate_{name}_characters"] = sum(map(len, again)) / len(text)
    for n in (2, 3, 4):
        grams = Counter(" ".join(words[k : k + n]) for k in range(len(words) - n + 1))
        for gram, count in grams.most_common(1):  # of equals, the first
            out[f"top_{n}_gram"] = len(gram) * count / len(text)
    return out | repeated_ngrams(words, text)


words = ["a", "the ", "be", " of", "And", "x1", "é", "日本", "2"]
marks = [" ", "  ", "\n", "\n\n", "\t", "\r\n", "#", "...", "…", "- ", "* ", "• ", "}"]
pieces = st.sampled_from(words + marks)
texts_ = st.lists(pieces, max_size=60).map("".join)
repeated = st.tuples(texts_, st.integers(1, 4), texts_).map(lambda t: (t[0] + "\n") * t[1] + t[2])


@settings(max_examples=150)
@given(st.lists(st.one_of(texts_, repeated), min_size=1, max_size=4))
@example(["", "...", "a . . .", "the be to of and that have with"])
def test_measures_agree_with_plain_python(strings):
    found = measured(*strings)
    for k, text in enumerate(strings):
        expected = reference(text)
        assert {name: values[k] for name, values in found.items()} == pytest.approx(expected), text


@settings(max_examples=150)
@given(st.lists(st.one_of(texts_, repeated), min_size=1, max_size=4))
@example(["\n", "\na\n", "a\r\n\u2028- b... \n \n", "x . . .", "• a\n\n\n• a\n\n- the #"])
def test_published_definitions_agree_with_plain_python(strings):
    found = measured(*strings, published=True)
    for k, text in enumerate(strings):
        expected = published(text)
        assert {name: values[k] for name, values in found.items()} == pytest.approx(expected), text


@given(st.lists(st.integers(0, 2), max_size=40), st.integers(1, 3))
def test_ngrams_that_repeat_are_found_wherever_they_stand(numbers, times):
    text = " ".join(f"w{n}" for n in numbers * times)
    found = measured(text)
    expected = reference(text)
    assert {name: found[name][0] for name in REPETITION} == pytest.approx({name: expected[name] for name in REPETITION})


def test_every_limit_can_break_and_the_first_names_the_reason():
    params = load_params().filter
    bounds = limits(params)
    assert set(REPETITION_LIMITS) == set(REPETITION) and set(QUALITY) < set(bounds)
    fine = {name: np.full(2, min(max(limit.low, 0.0), limit.high)) for name, limit in bounds.items()}
    assert decide_documents(fine, bounds).kept.all()
    for name, limit in bounds.items():
        bad = limit.high + 0.001 if np.isfinite(limit.high) else limit.low - 0.001
        decision = decide_documents(fine | {name: np.array([bad, fine[name][0]])}, bounds)
        assert decision.kept.tolist() == [False, True]
        assert decision.reasons == [name] and decision.values.tolist() == [bad]
    both = fine | {"words": np.zeros(2), "language": np.zeros(2)}
    assert decide_documents(both, bounds).reasons == ["language", "language"]


def test_repetition_can_be_switched_off():
    params = load_params().filter
    assert not set(REPETITION) & set(limits(params.model_copy(update={"repetition": False})))


def test_limits_of_ones_own_replace_or_add():
    params = load_params().filter
    own = params.model_copy(update={"limits": {"top_2_gram": (None, 0.5), "words": (2, None)}})
    assert limits(own)["top_2_gram"] == (-np.inf, 0.5) and limits(own)["words"] == (2, np.inf)
    assert list(limits(own)) == list(limits(params))
    alone = own.model_copy(update={"repetition": False})
    assert set(limits(alone)) & set(REPETITION) == {"top_2_gram"}


def test_a_new_rule_is_a_row_and_a_limit(monkeypatch):
    digits = rules.Measures(("digits",), lambda documents, params: {"digits": np.array([0.0, 1.0])})
    monkeypatch.setattr(rules, "MEASURES", (*rules.MEASURES, digits))
    params, documents = load_params().filter, texts(table(["text " * 40, "1 2 3 " * 40])["text"])
    assert "digits" not in word_measures(documents, params)
    with_limit = params.model_copy(update={"limits": {"digits": (None, 0.3)}})
    check_limits(with_limit)
    values = word_measures(documents, with_limit)
    assert decide_documents(values, {"digits": limits(with_limit)["digits"]}).reasons == ["digits"]
    assert rules.version(with_limit) != rules.version(params)


def test_a_limit_without_measure_is_refused():
    params = load_params().filter.model_copy(update={"limits": {"digits": (None, 0.3)}})
    with pytest.raises(UserError, match=r"filter.limits: 'digits' is no measure. Known are words, mean_word_length"):
        check_limits(params)
