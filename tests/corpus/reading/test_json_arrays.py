"""An array of objects is read as its objects, however it is written and cut into chunks."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.corpus.reading import streams
from stages.corpus.reading.documents import read_documents
from stages.corpus.reading.records import read_records
from tests.corpus.helpers import source

KEYS = st.text('ab[]{},\\" \n', max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.lists(st.fixed_dictionaries({"a": VALUES}), min_size=1, max_size=5)


@settings(max_examples=80)
@example([{"a": {"[[[": [], ']}"': None}}], None, 24, False)  # the first chunk ends in a string that holds brackets
@given(RECORDS, st.sampled_from([None, 0, 2]), st.integers(1, 40), st.booleans())
def test_an_array_holds_what_json_reads(tmp_path_factory, records, indent, chunk, ascii_only):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", max(chunk, 24))  # the first object's end must be in the first chunk, or none
        found, rejected = read_records(source(path))
    assert [record.value for record in found] == records and not rejected
    assert [record.line for record in found] == [*range(1, len(records) + 1)]


@pytest.mark.parametrize(
    ("content", "texts", "rejected"),
    [
        (b'\xef\xbb\xbf[{"text": "one"},\r\n {"text": "two"}]\r\n', ["one", "two"], {}),
        (b'[{"text": "one"}, {"text": "bad" x}, {"text": "two"}]', ["one", "two"], {"malformed JSON": 1}),
        (b'[{"text": "one"}, 3, ["x"], {"text": "two"}]', ["one", "two"], {"not a JSON object": 2}),
        (b'[{"text": "one"}, {"text": "tw', ["one"], {"malformed JSON": 1}),
        (b'[{"text": "one"},', ["one"], {"malformed JSON": 1}),
        (b'[{"text": "one"}]\n{"text": "two"}\n', ["two"], {"not a JSON object": 1}),  # lines, the first one bad
        (b'[{"text": "one"}\n{"text": "two"}\n', ["two"], {"malformed JSON": 1}),
        (b'[[{"text": "one"}]]\n{"text": "two"}\n', ["two"], {"not a JSON object": 1}),
    ],
)
def test_damage_costs_no_other_object(tmp_path, content, texts, rejected):
    (tmp_path / "a.json").write_bytes(content)
    corpus = read_documents(source(tmp_path))
    assert sorted(corpus.table["text"].to_pylist()) == texts and corpus.rejected.reasons == rejected
