import os
from collections import Counter
from contextlib import nullcontext

import pyarrow.parquet as pq
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.contract.process.quiet import quietly
from stages.corpus.tokens import pretokens
from stages.corpus.tokens.merges import _byte_letters
from stages.corpus.tokens.pretokens import OVERHEAD, count_pretokens, write_pretokens
from stages.corpus.tokens.vocabulary import SPECIAL
from tests.corpus.helpers import table

pieces = st.sampled_from([*SPECIAL, " a", "the", "\n", "  ", "'s", "é", "ÿ", "٣", "\u3000", "日本", "😀", "12", "_-"])
known = st.characters(exclude_categories=["Cs", "Cn"])  # what is assigned yet differs with Unicode's version
some_texts = st.lists(st.text(known, max_size=30) | st.lists(pieces, max_size=12).map("".join), min_size=1, max_size=9)


def by_hugging_face(texts: list[str]) -> Counter:
    from tokenizers import pre_tokenizers

    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    byte = {letter: byte for byte, letter in enumerate(_byte_letters())}
    return Counter(bytes(byte[letter] for letter in word) for text in texts for word, _ in split(text))


@settings(max_examples=150)
@given(some_texts, st.integers(1, 60))
@example([SPECIAL[0] * 2, "", "a"], 1)
def test_the_counts_are_those_of_hugging_face_whatever_is_looked_at_together(texts, part):
    before, pretokens.PART = pretokens.PART, part
    try:
        assert count_pretokens(table(texts)) == by_hugging_face(texts)
    finally:
        pretokens.PART = before


@settings(max_examples=60)
@given(st.dictionaries(st.text(min_size=1).map(str.encode), st.integers(1, 40), min_size=1), st.integers(1, 100))
def test_each_is_written_as_often_as_it_occurs(tmp_path_factory, counts, rows):
    path = tmp_path_factory.mktemp("pretokens") / "pretokens.parquet"
    before, pretokens.ROWS = pretokens.ROWS, rows
    try:
        write_pretokens(counts, path)
    finally:
        pretokens.ROWS = before
    assert Counter(pq.read_table(path)["text"].to_pylist()) == counts


def test_millions_of_one_word_take_little_room(tmp_path):
    write_pretokens({b" the": 5_000_000, b" of": 3_000_000}, tmp_path / "pretokens.parquet")
    assert (tmp_path / "pretokens.parquet").stat().st_size < 100_000


def test_what_is_rare_is_forgotten_where_there_is_no_room_and_nothing_else(monkeypatch):
    monkeypatch.setattr(pretokens, "PART", 500)
    texts = [f" often usual{k % 20} rare{k}x" for k in range(2000)]
    whole, room = by_hugging_face(texts), 100 * (8 + OVERHEAD)
    found = count_pretokens(table(texts), room)
    assert sum(map(len, found)) + OVERHEAD * len(found) <= room
    assert all(found[word] <= whole[word] for word in found)
    assert {b" often", b" usual", b"19"} <= found.keys() and found[b" often"] == 2000
    assert count_pretokens(table(texts), room) == found


def test_what_a_library_writes_inside_is_not_seen_and_all_else_is(capfd):
    for said in (b"before ", b"inside ", b"after"):
        with quietly() if said == b"inside " else nullcontext():
            os.write(1, said)
            os.write(2, said)
    assert capfd.readouterr() == ("before after", "before after")
