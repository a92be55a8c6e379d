"""Two thousand malformed inputs through the data stages: each is counted, none stops a stage or costs a neighbor."""

import gzip
import importlib
import json
import random
import zlib
from collections import Counter
from itertools import cycle
from pathlib import Path

import orjson
import zstandard

from stages.contract.params import Params, load_params
from stages.corpus.reading.documents import read_documents
from stages.corpus.reading.rejections import KEPT
from stages.corpus.reading.streams import BROKEN
from tests.corpus.helpers import stage_run
from tests.corpus.test_stages import STAGES, metrics

TOTAL = 2000
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
NO_RECORD = ("malformed JSON", "not a JSON object", "invalid UTF-8")
ENDS, MARKS = (b"\n", b"\r\n"), (b"", b"\xef\xbb\xbf")
NAMES = [
    "same",
    "same",
    None,
    "",
    0,
    -7,
    10**18,
    10**30,
    1.5,
    True,
    [],
    {"a": 1},
    "a\nb|c`d",
    "\0",
    "é\u202e😀",
    "x" * 9999,
]
SOURCES = ["s", None, "", 3, "a\n| b", "../c", "d\0"]


def malformed(line: bytes, rng: random.Random) -> dict[str, list[bytes]]:
    """What a good line could have been, by the reason for which it is rejected."""
    cut, deep = line[: rng.randrange(1, len(line))], rng.randrange(2, 900)
    digits = b"1" + b"0" * rng.choice([5, 18, 19, 20, 400, 4000])
    open_lists, open_objects, too_deep = b"[" * 100_000, b'{"text":' * 100_000, rng.randrange(1000, 1024)
    values = [b"7", digits, digits + b".5", b"1e999", b"-0", b"NaN", b"-Infinity", b"true", b"[]", b"{}", b'["a"]']
    values += [b"[" * n + b"]" * n for n in (deep, too_deep)] + [b'{"text":' * deep + b'"a"' + b"}" * deep]
    blank = [b"", b" ", b"\\n\\t", b"\\u2003\\u3000", "\u00a0\u2028".encode()]
    no_utf8 = [b"\xff", b"\xc3", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\\ud800", b"\\udc00\\ud800"]
    tails = [b"}", b"]", b",", b" x", b"\0", b" // x", line, b"\r" + line]
    escapes = [b"a\x01b", b"a\0b", b"\\x", b"\\u12", b"\\"]
    no_json = [
        b"{,}",
        b"{text: 'a'}",
        b"{'text': 'a'}",
        b'{"text" "a"}',
        b'{"text": a}',
        b'{"text": .5}',
        b"\0",
        b"\0" * 99,
    ]
    no_json += [open_lists, open_objects, open_lists + b"]" * 100_000, b'{"text": %b}' % (b"[" * 2000 + b"]" * 2000)]
    no_json += [b'{"text": 1%b}' % (b"0" * 5000), line.decode().encode("utf-16-le"), line.decode().encode("utf-32-be")]
    no_text = [b"", b'"id": 1', b'"text": null', b'"Text": "a"', b'"text ": "a"', b'"": "a"', b'"id": "", "source": ""']
    return {
        "malformed JSON": [cut, line[:-1], line[:-1] + b",}", *no_json, *(line + tail for tail in tails)]
        + [b'{"text": "%b"}' % escape for escape in escapes],
        "not a JSON object": [b"3", b"null", b"true", b'"text"', b"[%b]" % line, b"[]", b"-1.5e7", b"NaN"],
        "missing text": [b"{%b}" % fields for fields in no_text] + [line[:-1] + b', "text": null}'],
        "text is not a string": [b'{"text": %b}' % value for value in values] + [line[:-1] + b', "text": 3}'],
        "empty text": [b'{"text": "%b"}' % text for text in blank],
        "invalid UTF-8": [b'{"text": "a%b b"}' % text for text in no_utf8] + [line.decode().encode("utf-16")],
        "synthetic is neither true nor false": [line[:-1] + b', "synthetic": %b}' % v for v in (b'"yes"', b"2", b"[]")],
    }


def good_lines() -> list[bytes]:
    """Prose under ids and sources as no one should give them."""
    rows = read_documents(load_params().data.pretrain).table.to_pylist()
    prose = [row["text"][:3000] for row in rows if row["source"] == "janeaustenr"][:60]
    named = zip(prose, cycle(NAMES), cycle(SOURCES), strict=False)
    return [json.dumps({"id": name, "text": text, "source": where}).encode() for text, name, where in named]


def write_lines(folder: Path, good: list[bytes], count: int) -> dict[tuple[str, int], str]:
    """Files in which good lines stand among ``count`` malformed ones; where these are, and why they are none."""
    rng, left, bad = random.Random(0), list(good), {}
    while count:
        number = len(list(folder.iterdir()))
        name = f"{number:02}.jsonl{['', '.gz', '.zst'][number % 3]}"
        made = [(line, why) for why, some in malformed(rng.choice(good), rng).items() for line in some][:count]
        lines = [*made, *((left.pop(), None) for _ in range(min(3, len(left))))]
        rng.shuffle(lines)
        bad |= {(name, at): why for at, (_, why) in enumerate(lines, 1) if why}
        content = MARKS[number % 2] + ENDS[number % 4 // 2].join(line for line, _ in lines)
        (folder / name).write_bytes(COMPRESS[Path(name).suffix.replace(".jsonl", "")](content))
        count -= len(made)
    assert not left
    return bad


def write_files(folder: Path, good: list[bytes]) -> dict[tuple[str, int], str]:
    """Files that are damaged as a whole or have one line that is too long, with good lines in front of that."""
    head = b"\n".join(good[:2]) + b"\n"
    gz, zst = zlib.compressobj(wbits=31), zstandard.ZstdCompressor(write_checksum=True).compressobj()
    files = {
        "cut.jsonl.gz": (gz.compress(head) + gz.flush(zlib.Z_SYNC_FLUSH), 3, BROKEN),
        "cut.jsonl.zst": (zst.compress(head) + zst.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK), 3, BROKEN),
        "cut.txt.gz": (gzip.compress(head)[:-9], 1, BROKEN),
        "none.json.gz": (b"not compressed", 1, BROKEN),
        "none.json.zst": (b"\x28\xb5\x2f\xfd", 1, BROKEN),
        "long.jsonl": (head + b'{"text": "%b"}\n' % (b"a" * 17 * 2**20), 3, "line too long"),
        "long.jsonl.zst": (zstandard.compress(head + b"[" * 17 * 2**20), 3, "line too long"),
        "latin.txt": (b"caf\xe9 " * 99, 1, "invalid UTF-8"),
        "wide.md": (("# wide\n" * 9).encode("utf-16"), 1, "invalid UTF-8"),
        "none.parquet": (b"PAR1 nothing of the kind PAR1", 0, "unreadable Parquet"),
        "empty.parquet": (b"", 0, "unreadable Parquet"),
        "empty.txt": (b"", 1, "empty text"),
    }
    for name, (content, _, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "empty.jsonl").touch()
    (folder / "blank.json").write_bytes(b" \r\n\n\t\n")
    return {(name, line): why for name, (_, line, why) in files.items()}


def run_stages(monkeypatch, root: Path) -> None:
    small = {"tokenizer": {"vocab_size": 512}, "pack": {"row_tokens": 128}, "max_rejected": 1}
    raw = load_params().model_dump() | small
    for name in ("pretrain", "validation", "evals"):
        raw["data"][name] = {"path": name, "files": "**/*"}
    monkeypatch.chdir(root)
    for name in STAGES:
        importlib.import_module(f"stages.{name}").main(stage_run(name, Params(**raw), root))


def rejected(stage: str) -> dict[tuple[str, int], str]:
    found = [orjson.loads(line) for line in Path(f"out/{stage}/rejected.jsonl").read_bytes().splitlines()]
    assert all(entry["excerpt"].isprintable() and len(entry["excerpt"]) <= 120 for entry in found)
    return {(entry["file"], entry["line"]): entry["reason"] for entry in found}


def test_each_of_two_thousand_is_counted_and_all_stages_go_on(tmp_path, monkeypatch, capfd):
    good = good_lines()
    for name in ("pretrain", "validation", "evals"):
        (tmp_path / name).mkdir()
    bad = write_files(tmp_path / "pretrain", good[:2])
    bad |= write_lines(tmp_path / "pretrain", good[2:], TOTAL - len(bad))
    held_out = write_lines(tmp_path / "validation", [b'{"text": "Held out, and found nowhere else."}'], 300)
    items = write_lines(tmp_path / "evals", [b'{"query": "What is asked here?"}'], 300)  # which need no text
    run_stages(monkeypatch, tmp_path)

    assert "Traceback" not in "".join(capfd.readouterr())
    assert len(bad) == TOTAL and rejected("dedup") == {place: bad[place] for place in sorted(bad)[:KEPT]}
    found = metrics(tmp_path, "dedup")
    assert found["records"]["data.pretrain"]["rejected"] == {"total": TOTAL, **Counter(bad.values())}
    assert found["documents_in"] == len(good) + 3 * 2
    of_items = Counter(why for why in items.values() if why in NO_RECORD)
    of_filter = metrics(tmp_path, "filter")["records"]
    assert of_filter["data.validation"]["rejected"] == {"total": len(held_out), **Counter(held_out.values())}
    found = of_filter["data.evals"]["rejected"]
    of_items["no fields"] = found["no fields"]  # {}, which is "missing text" to others
    assert 0 < found["no fields"] < 9 and found == {"total": of_items.total(), **of_items}
    kept = metrics(tmp_path, "filter")["documents_out"]
    assert kept > 40 and metrics(tmp_path, "pack")["train"]["documents"] == kept
