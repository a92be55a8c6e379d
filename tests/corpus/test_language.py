import socket

from stages.corpus.language import language_scores

ENGLISH = "It is a truth universally acknowledged, that a single man in possession of a good fortune must want a wife."
GERMAN = "Jemand musste Josef K. verleumdet haben, denn ohne dass er etwas Böses getan hätte, wurde er verhaftet."
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"


def test_languages_are_told_apart_without_a_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    documents = [ENGLISH, ENGLISH.upper(), GERMAN, JAPANESE, "\n\r\n" + f"{ENGLISH}\n" * 10 + JAPANESE * 200, "", "\n"]
    english = language_scores(documents, ["en"])
    assert (english[[0, 1, 4]] > 0.5).all() and (english[[2, 3]] < 0.1).all()
    assert (language_scores(documents[2:4], ["de", "ja"]) > 0.5).all()
