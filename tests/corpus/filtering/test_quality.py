import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.corpus.filtering.quality import Seeds, fit_classifier, held_out_auc, quality_scores, read_seeds
from stages.corpus.reading.rejections import Rejections
from stages.corpus.text.words import texts
from tests.corpus.helpers import jsonl, source, table

GOOD = [f"the theorem number {k} follows from lemma {k % 7} and a careful proof" for k in range(150)]
BAD = [f"buy number {k} now and click here for a free offer {k % 7}" for k in range(150)]


def records():
    return [{"text": text, "label": "good"} for text in GOOD] + [{"text": text, "label": 0} for text in BAD]


def test_it_tells_apart_what_it_learned_to_tell_apart(tmp_path):
    seeds = read_seeds(source(jsonl(tmp_path / "seeds.jsonl", records())))
    assert len(seeds.texts) == 300 and 15 < seeds.held_out.sum() < 50
    classifier = fit_classifier(seeds)
    assert held_out_auc(seeds, classifier) > 0.99
    unseen = ["a proof of the theorem and its lemma", "click here now for a free offer", ""]
    good, bad, nothing = quality_scores(texts(table(unseen)["text"]), classifier)
    assert good > 0.9 and bad < 0.1 and 0.2 < nothing < 0.8


def test_neither_the_order_nor_the_files_show(tmp_path):
    (tmp_path / "b" / "good").mkdir(parents=True)
    (tmp_path / "b" / "bad").mkdir()
    jsonl(tmp_path / "a.jsonl", records())
    jsonl(tmp_path / "b" / "good" / "x.jsonl", [{"text": text} for text in GOOD[::-1] + GOOD[:9]])
    jsonl(tmp_path / "b" / "bad" / "x.jsonl", [{"text": text} for text in BAD[::-1]])
    one, other = (fit_classifier(read_seeds(source(tmp_path / name))) for name in ("a.jsonl", "b"))
    assert one.tobytes() == other.tobytes()


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=20))
def test_the_auc_is_that_of_all_pairs(drawn):
    """A classifier of one feature: documents of the words w0 to w3 with the weights 0 to 3."""
    words, good = [f"w{k}" for k, _ in drawn], np.array([label for _, label in drawn])
    single = np.array([f"w{k}" for k in range(4)])
    classifier = np.zeros(2**18 + 1)
    for k, word in enumerate(single):
        classifier[_bucket(word)] = k
    found = held_out_auc(Seeds(words, good, np.ones(len(drawn), bool), Rejections(), len(drawn)), classifier)
    pairs = [(a > b) + (a == b) / 2 for a, x in drawn if x for b, y in drawn if not y]
    assert found == (pytest.approx(np.mean(pairs), abs=1e-6) if pairs else None)


def _bucket(word: str) -> int:
    from stages.corpus.text.words import fold_table, hash_words

    column = texts(table([word])["text"])
    out = np.zeros(9, np.uint64)
    hash_words(column.data, 0, len(column.data), fold_table(), out)
    return int(out[0] % np.uint64(2**18))


def test_what_has_no_label_is_set_aside_and_one_kind_alone_is_refused(tmp_path):
    deep = b'{"text": "x", "label": ' + b"[" * 1010 + b"]" * 1010 + b"}"
    bad = [{"text": "no label"}, {"text": "x", "label": "perhaps"}, deep, {"label": "good"}]
    seeds = read_seeds(source(jsonl(tmp_path / "seeds.jsonl", records() + bad)))
    assert [entry.reason for entry in seeds.rejected] == ["label is neither good nor bad"] * 3 + ["no text"]
    with pytest.raises(UserError, match="150 good and 0 bad texts; a classifier needs some of both"):
        read_seeds(source(jsonl(tmp_path / "good.jsonl", records()[:150])))
