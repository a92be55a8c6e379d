"""Generated sources of every format with unusable records among good ones. VERDICT_MALFORMED=2000 makes so many."""

import gzip
import json
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from stages.contract.params import Dedup
from stages.corpus.dedup.shards import all_rejected, make_shards, units
from stages.corpus.filtering.quality import read_seeds
from stages.corpus.reading.documents import read_documents
from stages.corpus.reading.records import read_records
from tests.corpus.helpers import jsonl, source
from tests.corpus.reading.test_malformed import malformed

SOURCES = int(os.environ.get("VERDICT_MALFORMED", "60"))
AT_ONCE = 10
PARAMS = Dedup(ngram=2, permutations=20, bands=10, threshold=0.5, paragraphs=0, against="none", memory_gib=0.4)
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
NO_STRING = (7, 1.5, True, [], ["a"], {"a": 1}, b"\xff")


def lines(rng: random.Random, good: list[dict]) -> tuple[str, bytes, Counter]:
    """JSONL, some of it unusable: the file's suffix, its content, and how many for which reason."""
    whole = [json.dumps(record).encode() for record in good]
    written = [(line, None) for line in whole]
    for _ in range(rng.randrange(1, 12)):
        reason, some = rng.choice(list(malformed(rng.choice(whole), rng).items()))
        written.append((rng.choice(some), reason))
    rng.shuffle(written)
    suffix = rng.choice(list(COMPRESS))
    end, mark = rng.choice([b"\n", b"\r\n", b"\n\n", b" \n \t\r\n"]), rng.choice([b"", b"\xef\xbb\xbf"])
    content = mark + end.join(line for line, _ in written) + rng.choice([b"", end])
    return ".jsonl" + suffix, COMPRESS[suffix](content), Counter(reason for _, reason in written if reason)


def rows(rng: random.Random, good: list[dict]) -> tuple[str, bytes, Counter]:
    """Parquet, some rows of it unusable."""
    reasons, table = Counter(), pa.Table.from_pylist(good)
    empty = [rng.choice([None, "", " ", "\n\t", "\u2003"]) for _ in range(rng.randrange(5))]
    reasons.update("missing text" if text is None else "empty text" for text in empty)
    bad = pa.table({"text": pa.array(empty, pa.string())})
    table = pa.concat_tables([table, bad], promote_options="default")
    table = table.take(pa.array(rng.sample(range(len(table)), len(table))))
    kind = rng.choice([None, pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
    if kind:
        table = table.set_column(table.column_names.index("text"), "text", table["text"].cast(kind))
    out = pa.BufferOutputStream()
    pq.write_table(
        table, out, row_group_size=rng.randrange(1, 9), compression=rng.choice(["none", "zstd", "gzip", "snappy"])
    )
    return ".parquet", out.getvalue().to_pybytes(), reasons


def odd_rows(rng: random.Random, good: list[dict]) -> tuple[str, bytes, Counter]:
    """Parquet without a usable row: a column of another type, or damaged."""
    value, count = rng.choice(NO_STRING), rng.randrange(1, 6)
    out = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": [value] * count, "id": [None] * count}), out, row_group_size=rng.randrange(1, 9))
    content = out.getvalue().to_pybytes()
    if rng.random() < 0.5:
        return ".parquet", content[: rng.randrange(len(content))], Counter({"unreadable Parquet": 1})
    return ".parquet", content, Counter({"text is not a string": count})


def text(rng: random.Random, good: list[dict]) -> tuple[str, bytes, Counter]:
    content, reason = rng.choice(
        [(b"", "empty text"), (b" \n", "empty text"), (b"caf\xe9", "invalid UTF-8"), (b"\xff\xfea\0", "invalid UTF-8")]
    )
    suffix = rng.choice(list(COMPRESS))
    return rng.choice([".txt", ".md"]) + suffix, COMPRESS[suffix](content), Counter([reason])


def generate(folder: Path, rng: random.Random, first: int) -> tuple[set[str], Counter]:
    """Write AT_ONCE files; the texts of their good records, and how many others there are for which reason."""
    texts, reasons = set(), Counter()
    for number in range(first, first + AT_ONCE):
        good = [{"id": f"{number}-{k}", "text": f"good {number} {k} é"} for k in range(rng.randrange(1, 4))]
        made = rng.choice([lines, lines, rows, odd_rows, text])
        suffix, content, bad = made(rng, good)
        (folder / f"{number:05}{suffix}").write_bytes(content)
        reasons += bad
        if made in (lines, rows):
            texts |= {record["text"] for record in good}
    (folder / "good.jsonl").write_bytes(b'{"text": "good"}\n')
    return texts | {"good"}, reasons


@pytest.mark.parametrize("first", range(0, SOURCES, AT_ONCE))
def test_no_good_record_is_lost_and_each_other_is_counted(tmp_path, first):
    folder = tmp_path / "source"
    folder.mkdir()
    texts, reasons = generate(folder, random.Random(first), first)
    corpus = read_documents(source(folder))
    assert set(corpus.table["text"].to_pylist()) >= texts and corpus.rejected.reasons == reasons
    shards = make_shards(units(source(folder), 2**22, tmp_path / "shards"), PARAMS, 2**24)
    assert all_rejected(shards).reasons == reasons
    assert sum(len(shard.index()) for shard in shards) == corpus.table.num_rows
    for part in ("good", "bad"):
        (folder / part).mkdir()
        jsonl(folder / part / "seeds.jsonl", [{"text": f"{part} seed {k}"} for k in range(9)])
    seeds = read_seeds(source(folder))
    assert len(seeds.texts) == 18 and seeds.read == 18 + len(seeds.rejected)
    for path in folder.glob("0*"):  # a few bits flipped: it may be read as anything, but it must be read
        content, rng = bytearray(path.read_bytes()), random.Random(path.name)
        for at in rng.sample(range(8 * len(content)), min(len(content), 3)):
            content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)
    assert "good" in read_documents(source(folder)).table["text"].to_pylist()
    assert len(read_records(source(folder))[0]) >= 19
