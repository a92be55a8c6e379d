"""CSV and TSV: what `csv` writes is read, and a bad row costs no other."""

import csv
import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.corpus.reading import streams
from stages.corpus.reading.records import read_records
from tests.corpus.helpers import source

CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=80)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.sampled_from([",", ";", "\t"]), st.integers(1, 30))
def test_what_csv_writes_is_read(tmp_path_factory, rows, delimiter, chunk):
    path = tmp_path_factory.mktemp("csv") / ("a.tsv" if delimiter == "\t" else "a.csv")
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("one", "two"), *rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", chunk)
        found, rejected = read_records(source(path))
    assert [(record.value["one"], record.value["two"]) for record in found] == rows and not rejected


@pytest.mark.parametrize(
    ("content", "values", "rejected"),
    [
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n\r\n3,\r\n", [{"a": "1", "b": "2"}, {"a": "3"}], {}),
        (b'a|b\n"1 ""x""\ny"|2', [{"a": '1 "x"\ny', "b": "2"}], {}),
        (b"a,b,\n1,2,\n", [{"a": "1", "b": "2"}], {}),
        (b"a,b\n1\n1,2,3\n1,2", [{"a": "1", "b": "2"}], {"other number of fields than the first line": 2}),
        (b"a,b\ncaf\xe9,1\n1,2", [{"a": "1", "b": "2"}], {"invalid UTF-8": 1}),
        (b'a,b\n"1"x,2\n1,2', [{"a": "1", "b": "2"}], {"malformed CSV": 1}),
        (b'a,b\n1,2\n"3,4\n5,6\n', [{"a": "1", "b": "2"}], {"malformed CSV": 1}),
        (b"a,b\n1,2\n,\n", [{"a": "1", "b": "2"}], {"no fields": 1}),
    ],
)
def test_a_bad_row_costs_no_other(tmp_path, content, values, rejected):
    for name, data in (("a.csv", content), ("a.csv.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        found, bad = read_records(source(tmp_path / name))
        assert [record.value for record in found] == values and bad.reasons == rejected


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"a,a\n1,2\n", "columns of the same name"), ("a,b\n1,2\n".encode("utf-16"), "invalid UTF-8")],
)
def test_a_file_without_usable_names_is_rejected(tmp_path, content, reason):
    (tmp_path / "a.csv").write_bytes(content)
    (tmp_path / "b.jsonl").write_text('{"a": 1}\n')
    assert read_records(source(tmp_path))[1].reasons == {reason: 1}
