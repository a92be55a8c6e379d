import gzip
import json
import random
import subprocess
import sys
import tracemalloc

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.contract.errors import UserError
from stages.corpus.reading import json_lines
from stages.corpus.reading.documents import PIECE, read_documents
from stages.corpus.reading.formats import format_of
from stages.corpus.reading.records import read_records
from stages.corpus.reading.rejections import KEPT, count_reasons, write_rejected
from stages.corpus.reading.sources import source_files
from stages.corpus.reading.streams import BROKEN, LINE_LIMIT, lines
from tests.corpus.helpers import jsonl, source

GOOD = [{"id": f"g{k}", "text": f"good text {k}", "source": "s"} for k in range(3)]


def ids(corpus):
    return corpus.table["id"].to_pylist()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"text": "cut', "malformed JSON"),
        (b"[" * 100_000, "malformed JSON"),
        (b'["text"]', "not a JSON object"),
        (b"3", "not a JSON object"),
        (b'{"id": "x"}', "missing text"),
        (b'{"text": null}', "missing text"),
        (b'{"text": 3}', "text is not a string"),
        (b'{"text": {"text": "nested"}}', "text is not a string"),
        (b'{"text": " \\n "}', "empty text"),
        (b'{"text": "caf\xe9"}', "invalid UTF-8"),
        (b'{"text": "\\ud800", "n": NaN}', "invalid UTF-8"),
        (b'{"text": "' + b"a" * (17 * 2**20) + b'"}', "line too long"),
    ],
)
def test_a_bad_record_is_rejected_and_its_neighbors_stay(tmp_path, bad, reason):
    corpus = read_documents(source(jsonl(tmp_path / "a.jsonl", [GOOD[0], bad, GOOD[1]])))
    assert ids(corpus) == ["g0", "g1"]
    assert [(r.file, r.line, r.reason) for r in corpus.rejected] == [("a.jsonl", 2, reason)]
    assert len(corpus.rejected.first[0].excerpt) <= 120 and corpus.rejected.first[0].excerpt.isprintable()


@pytest.mark.parametrize(
    "field", [b"[" * 5000 + b"]" * 5000, b'{"n": ' * 1010 + b"0" + b"}" * 1010, b"1" + b"0" * 9999]
)
def test_a_record_python_cannot_parse_does_not_depend_on_others(tmp_path, field):
    odd = b'{"id": "odd", "text": "kept", "n": %b}' % field
    for others in ([GOOD[0]], [b'{"text": "cut']):
        corpus = read_documents(source(jsonl(tmp_path / "a.jsonl", [odd, *others])))
        assert "odd" in ids(corpus) and len(corpus.table) + len(corpus.rejected) == 2


def test_a_line_of_50_megabytes_costs_no_memory_and_no_neighbor(tmp_path):
    plain = jsonl(tmp_path / "a.jsonl", [GOOD[0], b'{"text": "' + b"a" * 50_000_000 + b'"}', GOOD[1]])
    packed = tmp_path / "a.jsonl.zst"
    packed.write_bytes(zstandard.compress(plain.read_bytes()))
    for path in (plain, packed):
        tracemalloc.start()
        found = [(line.number, line.problem) for line in lines(path)]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == [(1, None), (2, "line too long"), (3, None)]
        assert peak < 60_000_000


def test_every_format_reads_the_same(tmp_path):
    plain = jsonl(tmp_path / "a.jsonl", GOOD)
    expected = read_documents(source(plain)).table
    data = plain.read_bytes()
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "a.parquet")
    (tmp_path / "a.ndjson").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n\n"))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(data))
    long = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    )
    (tmp_path / "a.jsonl.zst").write_bytes(long.compress(data))
    for name in ("a.parquet", "a.ndjson", "a.json.gz", "a.jsonl.zst"):
        corpus = read_documents(source(tmp_path / name))
        assert corpus.table.equals(expected) and not corpus.rejected


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.md").write_text("# Büro\n\ntext")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "c.txt").write_bytes(b"caf\xe9")
    (tmp_path / ".hidden").write_text("left out")
    corpus = read_documents(source(tmp_path))
    assert corpus.table.to_pylist() == [
        {"id": "a.txt.gz", "text": "packed", "source": tmp_path.name},
        {"id": "sub/b.md", "text": "# Büro\n\ntext", "source": "sub"},
    ]
    assert [(r.file, r.reason) for r in corpus.rejected] == [("c.txt", "invalid UTF-8")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("lost", [1, 5, 1000])
def test_a_truncated_stream_is_noticed_and_its_beginning_kept(tmp_path, suffix, lost):
    varied = ["".join(chr(65 + (k * j) % 57) for j in range(300)) for k in range(1000)]
    data = b"".join(orjson.dumps({"id": str(k), "text": text}) + b"\n" for k, text in enumerate(varied))
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes((gzip.compress(data) if suffix == ".gz" else compressor.compress(data))[:-lost])
    corpus = read_documents(source(path))
    assert corpus.table.num_rows > (500 if lost < 1000 else 0)  # zstd loses a block of 128 KiB
    assert BROKEN in count_reasons(corpus.rejected)


def test_a_corrupt_stream_never_raises(tmp_path):
    data = b"".join(orjson.dumps({"text": f"{k}" * 50}) + b"\n" for k in range(5000))
    packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(data))
    packed[len(packed) // 2] ^= 255
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    jsonl(tmp_path / "b.jsonl", GOOD)
    corpus = read_documents(source(tmp_path))
    assert {"g0", "g1", "g2"} <= set(ids(corpus)) and BROKEN in count_reasons(corpus.rejected)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_everything_before_the_damage_is_kept(tmp_path, suffix):
    data = b"".join(orjson.dumps({"id": str(k), "text": f"{k * k}-" * 50}) + b"\n" for k in range(5000))
    compress = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(data)[:-8] + b"\0" * 8)  # only the checksum is wrong
    corpus = read_documents(source(path))
    assert corpus.table.num_rows > 4900 and BROKEN in count_reasons(corpus.rejected)


def test_several_and_skippable_zstd_frames_are_complete(tmp_path):
    frames = [zstandard.compress(orjson.dumps(record) + b"\n") for record in GOOD]
    skippable = b"\x50\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"padding"
    (tmp_path / "a.jsonl.zst").write_bytes(skippable.join(frames))
    corpus = read_documents(source(tmp_path))
    assert ids(corpus) == ["g0", "g1", "g2"] and not corpus.rejected


def test_parquet_that_cannot_be_read_and_wrong_columns(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing of the kind")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    pq.write_table(pa.Table.from_pylist(GOOD), tmp_path / "c.parquet")
    corpus = read_documents(source(tmp_path))
    assert ids(corpus) == ["g0", "g1", "g2"]
    assert count_reasons(corpus.rejected) == {"text is not a string": 2, "unreadable Parquet": 1}


def test_a_corrupt_row_group_costs_only_itself(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"id": f"{k:03}", "text": f"text {k} " * 40} for k in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, compression="gzip")
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    corpus = read_documents(source(path))
    assert ids(corpus) == [f"{k:03}" for k in [*range(10), *range(20, 30)]]
    assert [(r.line, r.reason) for r in corpus.rejected] == [(11, "unreadable Parquet")]
    assert corpus.rejected.first[0].excerpt.endswith(", 10 rows")


def test_a_row_of_parquet_that_is_no_utf8_costs_no_other_record(tmp_path):
    words = pa.array([b"one", b"tw\xff", b"three"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"query": words}), tmp_path / "a.parquet")
    records, rejected = read_records(source(tmp_path))
    assert [record.value["query"] for record in records] == ["one", "three"]
    assert [(r.line, r.reason) for r in rejected] == [(2, "invalid UTF-8")]


def test_large_rows_of_parquet_come_few_at_a_time(tmp_path):
    rows = [{"id": f"{k:02}", "text": f"{k} " + "x" * 2**20} for k in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    pieces = list(format_of("a.parquet").pieces(tmp_path / "a.parquet", "a.parquet", PIECE, {}))
    assert sum(piece.documents()[0].num_rows for piece in pieces) == 40
    assert max(piece.memory for piece in pieces) < 3 * PIECE


def test_a_text_file_longer_than_the_limit_is_rejected(tmp_path):
    (tmp_path / "a.txt").write_text("a word " * (LINE_LIMIT // 7 + 200_000))
    (tmp_path / "b.txt").write_text("another")
    corpus = read_documents(source(tmp_path))
    assert ids(corpus) == ["b.txt"] and [(r.file, r.reason) for r in corpus.rejected] == [("a.txt", "text too long")]


def test_ids_and_sources_are_completed_and_made_unique(tmp_path):
    jsonl(
        tmp_path / "a.jsonl",
        [
            {"text": "no id"},
            {"id": 7, "text": "number"},
            {"id": "x", "text": "first"},
            {"id": "x#2", "text": "taken"},
            {"id": "x", "text": "second", "source": "given"},
            {"id": "x", "text": "third"},
            {"id": "", "text": "empty id"},
        ],
    )
    corpus = read_documents(source(tmp_path / "a.jsonl"))
    assert {row["id"]: (row["text"], row["source"]) for row in corpus.table.to_pylist()} == {
        "a.jsonl:1": ("no id", "a"),
        "7": ("number", "a"),
        "x": ("first", "a"),
        "x#2": ("taken", "a"),
        "x#3": ("second", "given"),
        "x#4": ("third", "a"),
        "a.jsonl:7": ("empty id", "a"),
    }
    assert corpus.renamed == 2 and not corpus.rejected


def test_synthetic_documents_are_marked_in_every_format(tmp_path):
    told = [("a", True), ("b", False), ("c", None), ("synthetic/d", True)]
    records = [{"id": str(k), "text": f"text {k}", "source": name, "synthetic": s} for k, (name, s) in enumerate(told)]
    marked = {"0": "synthetic/a", "1": "b", "2": "c", "3": "synthetic/d"}
    jsonl(tmp_path / "plain.jsonl", records)
    jsonl(tmp_path / "slow.jsonl", [*records, b"no JSON"])
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "plain.parquet")
    pq.write_table(pa.Table.from_pylist(records).append_column("n", [[{"m": 1}] * 4]), tmp_path / "more.parquet")
    for path in tmp_path.iterdir():
        found = read_documents(source(path)).table.to_pylist()
        assert {row["id"]: row["source"] for row in found} == marked, path.name
    for value, reasons in ((1, {}), ("yes", {"synthetic is neither true nor false": 1})):
        odd = [*records, {"id": "odd", "text": "odd", "synthetic": value}]
        corpus = read_documents(source(jsonl(tmp_path / "odd.jsonl", odd)))
        assert count_reasons(corpus.rejected) == reasons and corpus.table.num_rows == 5 - len(reasons)
    assert ids(read_documents(source(jsonl(tmp_path / "own.jsonl", [{"text": "no source", "synthetic": True}])))) == [
        "own.jsonl:1"
    ]


def test_a_million_equal_ids_stay_linear(tmp_path):
    corpus = read_documents(source(jsonl(tmp_path / "a.jsonl", [b'{"id": 0, "text": "t"}'] * 50_000)))
    assert corpus.renamed == 49_999 and len(set(ids(corpus))) == 50_000


def test_records_keep_their_origin_and_need_no_text(tmp_path):
    (tmp_path / "sub").mkdir()
    jsonl(tmp_path / "sub/b.jsonl", [{"messages": []}, b"{", b'{"prompt": "p", "score": 1' + b"0" * 30 + b"}"])
    records, rejected = read_records(source(tmp_path, "**/*.jsonl"))
    assert [(r.file, r.line, list(r.value)) for r in records] == [
        ("sub/b.jsonl", 1, ["messages"]),
        ("sub/b.jsonl", 3, ["prompt", "score"]),
    ]
    write_rejected(tmp_path / "q.jsonl", rejected)
    assert orjson.loads((tmp_path / "q.jsonl").read_bytes()) == {
        "file": "sub/b.jsonl",
        "line": 2,
        "reason": "malformed JSON",
        "excerpt": "{",
    }


@pytest.mark.parametrize(
    ("files", "pattern", "says"),
    [
        ({}, "**/*", "an empty folder"),
        ({"a.jsonl": b""}, "**/*.parquet", "no file matches"),
        ({"a.jsonl": b""}, "/abs/*", "not a pattern"),
        ({"a.html": b"x"}, "**/*", "a.html: unknown type"),
        ({"a.jsonl": b""}, "**/*", "every file is empty"),
        ({"a.jsonl": b"[1,\n2]\n"}, "**/*", "2 x malformed JSON"),
        ({"a.jsonl": b'{"id": 1}\n'}, "**/*", "1 x missing text"),
    ],
)
def test_a_users_mistake_is_one_line(tmp_path, files, pattern, says):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says) as error:
        read_documents(source(tmp_path, pattern))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**/*", ["a.jsonl", "b.parquet", "x/a.jsonl", "x/y/c.txt"]),
        ("*", ["a.jsonl", "b.parquet"]),
        ("*.{jsonl,parquet}", ["a.jsonl", "b.parquet"]),
        ("{x,**}/{a.jsonl,y/*}", ["a.jsonl", "x/a.jsonl", "x/y/c.txt"]),
        ("**/y/**/*", ["x/y/c.txt"]),
        ("x/**", ["x/a.jsonl", "x/y/c.txt"]),
        ("**/[ab].*", ["a.jsonl", "b.parquet", "x/a.jsonl"]),
    ],
)
def test_pattern_takes_the_files_it_names(tmp_path, capsys, pattern, names):
    for name in ("a.jsonl", "b.parquet", "x/a.jsonl", "x/y/c.txt", "x/.hidden.jsonl", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [name for _, name in source_files(source(tmp_path, pattern))] == names
    told = "1 hidden files skipped (x/.hidden.jsonl)" in capsys.readouterr().out
    assert told == (pattern in ("**/*", "x/**"))


@pytest.mark.parametrize("pattern", ["../*", "a//b", "**x/*", "", "{a,b}" * 20])
def test_an_impossible_pattern_is_refused(tmp_path, pattern):
    with pytest.raises(UserError, match="not a pattern of relative paths"):
        source_files(source(jsonl(tmp_path / "a.jsonl", GOOD).parent, pattern))


def test_source_is_one_file_with_a_pattern_for_a_name(tmp_path):
    corpus = read_documents(source(jsonl(tmp_path / "a[1]*?.jsonl", GOOD)))
    assert len(corpus.table) == len(GOOD)


def test_link_to_a_folder_is_refused_whatever_the_pattern(tmp_path):
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "a.jsonl", GOOD)
    (tmp_path / "data" / "extra").symlink_to(tmp_path)
    for pattern in ("**/*", "*/*", "a.jsonl"):
        with pytest.raises(UserError, match="extra is a link to a folder"):
            source_files(source(tmp_path / "data", pattern))


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.jsonl: no such file or folder"):
        read_documents(source(tmp_path / "nowhere.jsonl"))


def test_the_order_of_records_changes_nothing(tmp_path):
    one = read_documents(source(jsonl(tmp_path / "a.jsonl", GOOD)))
    other = read_documents(source(jsonl(tmp_path / "b.jsonl", GOOD[::-1])))
    assert one.table.equals(other.table)


@settings(max_examples=60)
@example([b"\xef\xbb\xbf"], 1)
@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=6), st.integers(0, 6))
def test_no_bytes_around_a_good_record_lose_it(tmp_path_factory, junk, at):
    good = orjson.dumps({"id": "good", "text": "kept"})
    path = jsonl(tmp_path_factory.mktemp("junk") / "a.jsonl", [*junk[:at], good, *junk[at:]])
    corpus = read_documents(source(path))
    assert "good" in ids(corpus)
    assert corpus.table.num_rows + len(corpus.rejected) == 1 + sum(bool(line.strip()) for line in junk)


def usable(line: bytes) -> dict | None:
    """The record on a line by Python's own parser, or None."""
    try:
        value = json.loads(line.decode())
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    text = value.get("text") if isinstance(value, dict) else None
    return value if isinstance(text, str) and text.strip() else None


def damaged(rng: random.Random, k: int) -> bytes:
    """A line that is hardly ever a record any more."""
    record = {
        "id": f"r{k}",
        "text": f"text {k} \u00fc\u4e2d " * rng.randint(1, 9),
        "n": [k, {"m": None}],
        "source": "s",
    }
    line, at = bytearray(orjson.dumps(record)), rng.randrange(20, 60)
    values = (b"null", b"7", b"[]", b"{}", b'" "', b'"\\u2003\\t"', b'"\\ud800"', b'"a\x01b"', b"NaN", b"tru", b"1e999")
    match rng.randrange(9):
        case 0:
            del line[at:]
        case 1:
            line[rng.randrange(len(line))] = rng.choice([0, 10, 13, 34, 92, 125, 128, 192, 237, 255])
        case 2:
            line[at:at] = rng.randbytes(rng.randint(1, 4))
        case 3:
            line = bytearray(b'{"id": "r%d", "text": %b}' % (k, rng.choice(values)))
        case 4:
            line = line + rng.choice([line, b",", b"}", b" x", b"\x00", b"\r{"])
        case 5:
            line = bytearray(
                rng.choice([b"[%b]", b'"%b"', b"%b]", b"\xef\xbb\xbf%b", b"{%b}", b" %b", b"\t%b,"]) % bytes(line)
            )
        case 6:
            line[-1:] = b', "text": %b}' % rng.choice(values)
        case 7:
            line = bytearray(b'{"a":' * rng.choice([3, 2000, 100_000]))
        case _:
            del line[rng.randrange(len(line))]
    return bytes(line)


@pytest.mark.parametrize("few", [1, 200, 2**16])  # bytes up to which lines are looked at one by one
def test_2000_damaged_records_are_counted_and_no_other_lost(tmp_path, monkeypatch, few):
    monkeypatch.setattr(json_lines, "FEW", few)
    rng, bad, good = random.Random(few), [], {}
    for number in range(30):
        path = tmp_path / f"{number:02}.jsonl{rng.choice(['', '.gz', '.zst'])}"
        content = []
        for k in range(100):
            whole = orjson.dumps({"id": f"{number}-{k}", "text": f"{number} {k}"})
            content += [damaged(rng, 100 * number + k), *[whole] * (number % 3 != 0)]
        lines = b"\n".join(content).split(b"\n")
        for line, data in enumerate(lines, 1):
            data = data.removeprefix(b"\xef\xbb\xbf") if line == 1 else data
            if value := usable(data):
                name = value.get("id")
                good[path.name, line] = (str(name) if name or name == 0 else f"{path.name}:{line}", value["text"])
            elif data.strip():
                bad.append((path.name, line))
        compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(b"\n".join(content)))
    corpus = read_documents(source(tmp_path))
    assert len(bad) >= 2000
    assert len(corpus.rejected) == len(bad)
    assert [(entry.file, entry.line) for entry in corpus.rejected] == bad[:KEPT]
    found = sorted((row["id"].split("#")[0], row["text"]) for row in corpus.table.to_pylist())
    assert found == sorted((name.split("#")[0], text) for name, text in good.values())


def test_reading_and_hashing_import_nothing_heavy(tmp_path):
    """Each stage would wait for it, and pyarrow and numba import these unasked."""
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two", "id": "x", "synthetic": True}])
    code = f"""
import sys
from stages.contract.params import Source
from stages.corpus.reading.documents import PIECE, read_documents
from stages.corpus.dedup.signatures import sign
from stages.corpus.text.words import texts
table = read_documents(Source(path={str(tmp_path)!r}, files="*")).table
sign(texts(table["text"]), 2, 60)
print([name for name in ("pandas", "scipy.linalg", "awkward", "pyarrow.dataset") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
