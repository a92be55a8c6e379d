"""Parquet files with odd columns: each row is used or counted, in documents and in records, in bounded memory."""

import base64
import decimal
import resource

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.contract.errors import UserError
from stages.corpus.reading import parquet, streams
from stages.corpus.reading.documents import PIECE, read_documents
from stages.corpus.reading.formats import format_of
from stages.corpus.reading.records import read_records
from stages.corpus.reading.rejections import KEPT, SAME_NAME, count_reasons
from tests.corpus.helpers import source

GOOD = ["one text of words", "two texts of words"]
NO_STRING, MISSING = "text is not a string", "missing text"


def columns(**named):
    return pa.table(named)


ODD = {
    "two columns text": (pa.Table.from_arrays([pa.array(GOOD)] * 2, ["text", "text"]), {SAME_NAME: 1}),
    "two columns id": (pa.Table.from_arrays([pa.array(GOOD)] * 3, ["text", "id", "id"]), {SAME_NAME: 1}),
    "no columns": (pa.table({"a": GOOD}).select([]), {}),
    "no column text": (columns(a=GOOD), {MISSING: 2}),
    "Text": (columns(Text=GOOD), {MISSING: 2}),
    "dotted": (pa.table({"text.en": GOOD}), {MISSING: 2}),
    "struct": (columns(text=[{"en": "a"}, {"en": "b"}]), {NO_STRING: 2}),
    "list": (columns(text=[["a"], ["b"]]), {NO_STRING: 2}),
    "map": (columns(text=pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8()))), {NO_STRING: 2}),
    "integers": (columns(text=[1, None]), {NO_STRING: 1, MISSING: 1}),
    "binary": (columns(text=[b"a", b"\xff"]), {NO_STRING: 2}),
    "fixed binary": (columns(text=pa.array([b"ab", b"cd"], pa.binary(2))), {NO_STRING: 2}),
    "dictionary of binary": (columns(text=pa.array([b"a", b"a"]).dictionary_encode()), {NO_STRING: 2}),
    "dictionary of integers": (columns(text=pa.array([1, 1]).dictionary_encode()), {NO_STRING: 2}),
    "decimals": (columns(text=[decimal.Decimal("1.5")] * 2), {NO_STRING: 2}),
    "nulls": (columns(text=pa.nulls(2)), {MISSING: 2}),
    "blank": (columns(text=["", " \n"]), {"empty text": 2}),
    "invalid UTF-8": (
        columns(text=pa.array([b"a\xff", b"\xc3"]).view(pa.string())),
        {"invalid UTF-8": 2},
    ),
    "year one": (columns(text=pa.array([-(2**62), 0], pa.timestamp("us"))), {NO_STRING: 1, parquet.UNREADABLE: 1}),
}
FINE = {
    "dictionary": columns(text=pa.array(GOOD).dictionary_encode(), id=pa.array([1, 2])),
    "large": columns(text=pa.array(GOOD, pa.large_string()), source=pa.nulls(2)),
    "view": columns(text=pa.array(GOOD, pa.string_view())),
    "json": columns(text=pa.ExtensionArray.from_storage(pa.json_(), pa.array(GOOD))),
    "id and source of other types": columns(
        text=GOOD, id=pa.array([1.5, None]), source=[b"a", b"b"], synthetic=pa.array([True, None])
    ),
    "other columns twice": pa.Table.from_arrays([pa.array(GOOD)] * 3, ["text", "meta", "meta"]),
}


@pytest.mark.parametrize("name", ODD)
def test_rows_that_hold_no_text_are_counted(tmp_path, name):
    table, expected = ODD[name]
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "good.jsonl").write_text('{"text": "a good one"}\n')
    corpus = read_documents(source(tmp_path))
    assert corpus.table["text"].to_pylist() == ["a good one"]
    assert count_reasons(corpus.rejected) == expected
    records, rejected = read_records(source(tmp_path))
    assert len(records) + len(rejected) == 1 + (
        1 if SAME_NAME in expected else pq.read_metadata(tmp_path / "a.parquet").num_rows
    )


@pytest.mark.parametrize("name", FINE)
def test_texts_of_any_string_type_are_read(tmp_path, name):
    pq.write_table(FINE[name], tmp_path / "a.parquet")
    corpus = read_documents(source(tmp_path))
    assert sorted(corpus.table["text"].to_pylist()) == GOOD and not corpus.rejected


def test_a_file_that_is_encrypted_is_rejected(tmp_path):
    import pyarrow.parquet.encryption as pe

    class Keys(pe.KmsClient):
        def __init__(self, configuration):
            pe.KmsClient.__init__(self)

        def wrap_key(self, key_bytes, master_key_identifier):
            return base64.b64encode(key_bytes)

        def unwrap_key(self, wrapped_key, master_key_identifier):
            return base64.b64decode(wrapped_key)

    factory = pe.CryptoFactory(Keys)
    for plaintext in (True, False):
        setting = pe.EncryptionConfiguration("k", column_keys={"k": ["text"]}, plaintext_footer=plaintext)
        properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), setting)
        with pq.ParquetWriter(
            tmp_path / f"{plaintext}.parquet", pa.schema([("text", pa.string())]), encryption_properties=properties
        ) as writer:
            writer.write_table(columns(text=GOOD))
    (tmp_path / "good.jsonl").write_text('{"text": "a good one"}\n')
    for rejected in (read_documents(source(tmp_path)).rejected, read_records(source(tmp_path))[1]):
        assert count_reasons(rejected) == {parquet.UNREADABLE: 2}


def test_a_million_unusable_rows_are_counted_and_a_thousand_kept(tmp_path):
    rows = pa.array([None, "", "good"]).dictionary_encode()
    pq.write_table(pa.table({"text": rows.take(pa.array([0, 1] * 500_000 + [2]))}), tmp_path / "a.parquet")
    corpus = read_documents(source(tmp_path))
    assert corpus.table.num_rows == 1 and len(corpus.rejected.first) == KEPT
    assert count_reasons(corpus.rejected) == {MISSING: 500_000, "empty text": 500_000}


def test_copies_of_a_long_text_are_read_in_slices(tmp_path, monkeypatch):
    """A dictionary of one text of a megabyte: 300 rows of it are 300 MB, stored in less than one."""
    monkeypatch.setattr(streams, "WINDOW", 2**30)
    text = "word " * 200_000
    pq.write_table(pa.table({"text": pa.array([text]).take(pa.array([0] * 300))}), tmp_path / "a.parquet")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pieces = format_of("a.parquet").pieces(tmp_path / "a.parquet", "a.parquet", PIECE, {})
    found = [piece.documents()[0].num_rows for piece in pieces]
    assert sum(found) == 300 and max(found) <= 9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB


def test_a_file_that_expands_beyond_measure_is_refused(tmp_path):
    text = "word " * 100_000
    pq.write_table(pa.table({"text": pa.array([text]).take(pa.array([0] * 1000))}), tmp_path / "a.parquet")
    for read in (read_documents, read_records):
        with pytest.raises(UserError, match=r"a.parquet: [\d,]+ bytes come from [\d,]+; no text compresses like this"):
            read(source(tmp_path))


def test_a_text_longer_than_the_limit_is_rejected(tmp_path):
    long = "x" * (streams.LINE_LIMIT + 1)
    pq.write_table(pa.table({"text": [long, "fine"]}), tmp_path / "a.parquet")
    corpus = read_documents(source(tmp_path))
    assert corpus.table["text"].to_pylist() == ["fine"] and count_reasons(corpus.rejected) == {"text too long": 1}
