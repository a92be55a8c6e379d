"""The stage on corpora in several files: what it finds, in how much memory, and after having been killed."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import dedup
from stages.contract.errors import UserError
from stages.contract.params import Dedup, load_params
from stages.corpus.dedup.collection import PROGRAM
from tests.corpus.dedup.test_duplicates import defined
from tests.corpus.helpers import jsonl, stage_run

ROOT = Path(__file__).resolve().parents[3]
PARAMS = Dedup(ngram=2, permutations=60, bands=20, threshold=0.5, paragraphs=0, against="known", memory_gib=0.4)


def given_params(params: Dedup, files: str = "data"):
    whole = load_params(ROOT / "params.yaml").model_dump()
    whole["data"]["pretrain"] = {"path": files, "files": "**/*"}
    return load_params(ROOT / "params.yaml").model_validate(whole | {"dedup": params.model_dump()})


def deduplicate(root: Path, files: list[list], params: Dedup = PARAMS) -> dict[str, bytes]:
    """What the stage makes of JSONL files, by name."""
    (root / "data").mkdir(parents=True)
    for k, records in enumerate(files):
        jsonl(root / f"data/{k}.jsonl", records)
    before = Path.cwd()
    os.chdir(root)
    try:
        dedup.main(stage_run("dedup", given_params(params), Path()))
    finally:
        os.chdir(before)
    return results(root)


def results(root: Path) -> dict[str, bytes]:
    paths = [path for folder in ("out", "reports") for path in (root / folder).rglob("*") if path.is_file()]
    return {path.name: path.read_bytes() for path in paths}


def rows(root: Path, name: str) -> list[dict]:
    return pq.read_table(root / f"out/dedup/{name}.parquet").to_pylist()


def records(strings: list[str]) -> list[dict]:
    return [{"id": f"d{k:05}", "text": text, "source": f"s{k % 2}"} for k, text in enumerate(strings)]


def spread(items: list, random) -> list[list]:
    """In any order over up to four files."""
    files = [[] for _ in range(random.randint(1, 4))]
    for item in random.sample(items, len(items)):
        random.choice(files).append(item)
    return files


some_texts = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "d", "E", "f,"]), min_size=1, max_size=9).map(" ".join),
    min_size=1,
    max_size=25,
)


@settings(max_examples=15)
@given(some_texts, st.randoms(use_true_random=False))
def test_the_result_is_the_definition_s_in_whatever_files_the_documents_are(tmp_path_factory, strings, random):
    root, items, first = tmp_path_factory.mktemp("dedup"), records(strings), defined(strings)
    one = deduplicate(root / "one", spread(items, random))
    names = [item["id"] for item in items]
    assert [row["id"] for row in rows(root / "one", "documents")] == [names[k] for k in sorted(set(first))]
    assert {(row["id"], row["kept_id"], row["kind"]) for row in rows(root / "one", "duplicates")} == {
        (names[k], names[s], "exact" if strings[k] == strings[s] else "near") for k, s in enumerate(first) if k != s
    }
    removed = rows(root / "one", "duplicates")
    assert len({row["cluster"] for row in removed}) == len({row["kept_id"] for row in removed})
    assert deduplicate(root / "two", spread(items, random), PARAMS.model_copy(update={"memory_gib": 1.0})) == one


@settings(max_examples=10)
@given(some_texts, some_texts, st.sampled_from([0, 1, 3]), st.randoms(use_true_random=False))
def test_against_an_index_is_as_together_with_what_was_kept(tmp_path_factory, old, new, least, random):
    """Ids in which what was kept comes first make it come first when all is deduplicated together."""
    root, params = tmp_path_factory.mktemp("against"), PARAMS.model_copy(update={"paragraphs": least})
    old, new = ([s.replace("E", "e\n") for s in strings] for strings in (old, new))
    older = [item | {"id": f"a{item['id']}"} for item in records(old)]
    newer = [item | {"id": f"b{item['id']}"} for item in records(new)]
    deduplicate(root / "old", spread(older, random), params)
    stayed = {row["id"] for row in rows(root / "old", "documents")}
    kept = [item for item in older if item["id"] in stayed]
    index = (root / "old/out/dedup/index.parquet").read_bytes()
    (root / "new/known").mkdir(parents=True)
    (root / "new/known/index.parquet").write_bytes(index)
    deduplicate(root / "all", spread([*kept, *newer], random), params)
    if not any(row["id"].startswith("b") for row in rows(root / "all", "documents")):
        with pytest.raises(UserError, match=r"data: nothing new: .* is in known already"):
            deduplicate(root / "new", spread(newer, random), params)
        return
    deduplicate(root / "new", spread(newer, random), params)

    def of_new(found: list[dict]) -> list[tuple]:
        return [(row["id"], row.get("text"), row.get("kind")) for row in found if row["id"].startswith("b")]

    for name in ("documents", "duplicates"):
        assert of_new(rows(root / "new", name)) == of_new(rows(root / "all", name))
    ids = [row["id"] for row in rows(root / "new", "index")]
    assert ids == [row["id"] for row in kept] + [row["id"] for row in rows(root / "new", "documents")]


def test_an_index_is_found_by_its_own_name_too_and_no_other_goes_unseen(tmp_path):
    deduplicate(tmp_path / "old", [records(["a b c d"])])
    (tmp_path / "kept").mkdir()
    index = (tmp_path / "old/out/dedup/index.parquet").rename(tmp_path / "kept/index-2024.parquet")
    with pytest.raises(UserError, match=r"has index-2024\.parquet, not index\.parquet\. Name the file itself"):
        deduplicate(tmp_path / "one", [records(["e f g"])], PARAMS.model_copy(update={"against": str(index.parent)}))
    deduplicate(tmp_path / "two", [records(["a b c d", "e f g"])], PARAMS.model_copy(update={"against": str(index)}))
    assert [row["text"] for row in rows(tmp_path / "two", "documents")] == ["e f g"]


def test_an_index_of_other_parameters_is_refused(tmp_path):
    deduplicate(tmp_path / "old", [records(["a b c"])])
    (tmp_path / "new/known").mkdir(parents=True)
    (tmp_path / "new/known/index.parquet").write_bytes((tmp_path / "old/out/dedup/index.parquet").read_bytes())
    with pytest.raises(UserError, match=r"'ngram': 2.*'ngram': 3"):
        deduplicate(tmp_path / "new", [records(["a b c"])], PARAMS.model_copy(update={"ngram": 3}))
    (tmp_path / "new/known/index.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UserError, match="not the index of a deduplicated corpus"):
        deduplicate(
            tmp_path / "third",
            [records(["a b c"])],
            PARAMS.model_copy(update={"against": str(tmp_path / "new/known")}),
        )


def cut_by_definition(strings: list[str], least: int) -> list[str]:
    seen, out = set(), []
    for text in strings:
        parts = re.split(r"(\n\n+)" if "\n\n" in text else r"(\n+)", text)
        left, dropped = "", False
        for paragraph, gap in zip(parts[::2], [*parts[1::2], ""], strict=True):
            words = tuple(re.findall(r"\w+", paragraph.lower()))
            if len(words) >= least and words in seen:
                dropped = True
                continue
            seen |= {words} if len(words) >= least else set()
            left += paragraph + gap
        out.append(left.rstrip("\n") if dropped else left)
    return out


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(st.sampled_from(["a b", "A b.", "b c d", "c", "--", "\n", "\n\n", "\n\n"]), max_size=8).map("\n".join),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
    st.integers(1, 400),
)
def test_paragraphs_stay_where_they_are_first(strings, least, memory):
    from stages.corpus.dedup.paragraphs import cut_paragraphs, find_repeated, hash_paragraphs
    from stages.corpus.text.words import texts
    from tests.corpus.helpers import table

    documents = texts(table(strings)["text"])
    hashes, counts, beside = hash_paragraphs(documents, least)
    pieces = [slice(k, k + 5) for k in range(0, max(1, len(hashes)), 5)][::-1]
    numbers = np.arange(len(hashes))
    found = find_repeated(counts, beside, lambda: ((hashes[p], numbers[p]) for p in pieces), memory)
    left = cut_paragraphs(documents, least, counts, found.again)
    left = [bytes(left.data[a:b]).decode() for a, b in zip(left.offsets[:-1], left.offsets[1:], strict=True)]
    assert left == cut_by_definition(strings, least)
    nothing = [k for k, text in enumerate(left) if counts[k] and not re.search(r"\w", text)]
    assert found.empty.tolist() == nothing
    assert all(holder <= k for k, holder in zip(nothing, found.holders, strict=True))


def test_a_document_whose_paragraphs_all_stand_elsewhere_is_removed(tmp_path):
    one, two, three = ("\n\n".join(f"{name} {k} " * 30 for k in range(4)) for name in ("sun", "moon", "star"))
    head = two.split("\n\n")[0]
    texts = [one, two, three + "\n\n" + head, head, head.replace("moon", "Moon,")]
    deduplicate(tmp_path, [records(texts)], PARAMS.model_copy(update={"paragraphs": 5}))
    assert [row["text"] for row in rows(tmp_path, "documents")] == [one, two, three]
    removed = [(row["id"], row["kept_id"], row["kind"]) for row in rows(tmp_path, "duplicates")]
    assert removed == [("d00003", "d00001", "paragraphs"), ("d00004", "d00001", "paragraphs")]
    found = orjson.loads((tmp_path / "reports/dedup/metrics.json").read_bytes())
    assert found["paragraphs"] == 2 and found["paragraphs_cut"] == 1 and found["clusters"] == 1


def synthetic(folder: Path, megabytes: float, seed: int = 0) -> None:
    """A folder with params.yaml and JSONL of documents of some 3 kB, a tenth of them nearly copies; malformed lines."""
    rng, folder = np.random.default_rng(seed), folder / "data"
    folder.mkdir(parents=True)
    params = given_params(PARAMS.model_copy(update={"ngram": 5, "against": "none"}))
    (folder.parent / "params.yaml").write_text(params.model_dump_json())
    vocabulary = np.array([f"w{word:06}" for word in range(100_000)])
    base = [" ".join(rng.choice(vocabulary, 400)) for _ in range(300)]
    for part in range(4):
        with (folder / f"{part}.jsonl").open("w") as f:
            size, k = 0, 0
            while size < megabytes * 250_000:
                text = base[rng.integers(len(base))].replace(
                    "w0", f"{'abcdefgh'[rng.integers(8)]}{rng.integers(10**6)}"
                )
                copies = 1 + (rng.random() < 0.1)
                for copy in range(copies):
                    f.write(f'{{"id": "{part}-{k}-{copy}", "text": "{text[300 * copy :]}"}}\n')
                    size += len(text)
                if k % 50 == 0:
                    f.write('{"id": "malformed", "text": "cut\n')
                k += 1


CHILD = """
import os, sys
from pathlib import Path
from stages import dedup
from stages.contract.params import load_params
from tests.corpus.helpers import stage_run

cores, room = int(sys.argv[1]), int(sys.argv[2])
os.sched_getaffinity = lambda _: range(cores)
from stages.corpus.dedup import collection
collection.room_in = lambda gib: room
dedup.main(stage_run("dedup", load_params(), Path()))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def child(root: Path, room: int, cores: int = 2) -> subprocess.Popen:
    """The stage in a process of its own, with so many bytes for data and cores."""
    command = [sys.executable, "-c", CHILD, str(cores), str(room)]
    return subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE)


def digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in results(root).items()}


def test_a_corpus_four_times_as_large_as_the_memory_for_it_stays_inside(tmp_path):
    room = 2**25
    synthetic(tmp_path, 4 * room / 1e6)
    process = child(tmp_path, room)
    said = process.communicate()[0].split()
    assert process.returncode == 0
    assert 1024 * int(said[-1]) <= PROGRAM + room


def test_workers_memory_and_kills_change_no_byte(tmp_path):
    synthetic(tmp_path / "one", 12)
    assert child(tmp_path / "one", 2**30, 1).wait() == 0
    whole, made = digests(tmp_path / "one"), {}
    (root := tmp_path / "two").mkdir()
    for name in ("data", "params.yaml"):
        (root / name).symlink_to(tmp_path / "one" / name)
    for _ in range(2):
        process, wanted = child(root, 2**26), len(made) + np.random.default_rng().integers(1, 4)
        while process.poll() is None and len(shards(root)) < wanted:
            time.sleep(0.002)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        before, made = made, shards(root)
        assert before.items() <= made.items(), "a shard was made again"
    assert len(made) > 1
    assert child(root, 2**26, 4).wait() == 0
    assert made.items() <= shards(root).items(), "a shard was made again"
    assert "documents.parquet" in whole and digests(root) == whole


def shards(root: Path) -> dict[Path, int]:
    """The whole shards on disk, and when each was made."""
    folders = root.glob("scratch/dedup/shards/*/*")
    return {path: path.stat().st_mtime_ns for path in folders if path.is_dir() and path.name.isdigit()}
