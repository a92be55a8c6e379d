import os
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from ruamel.yaml import YAML

from stages.contract import UserError
from stages.contract.identity import digest, hidden_from_run_cache
from stages.contract.params import Params, load_params, validated
from stages.contract.process import worker

SHIPPED = Path(__file__).resolve().parents[2] / "params.yaml"


def write(path, change):
    values = YAML(typ="safe").load(SHIPPED)
    change(values)
    YAML(typ="safe").dump(values, path)
    return path


def message(path):
    with pytest.raises(UserError) as error:
        load_params(path)
    return str(error.value)


def test_the_shipped_file_is_valid():
    assert load_params(SHIPPED).dpo.beta > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v["dpo"].update(beta=-1), "dpo.beta: -1 is not allowed. Input should be greater than 0."),
        (lambda v: v["dpo"].update(bta=1), "dpo.bta: no such parameter. Allowed here: beta, loss, label_smoothing,"),
        (lambda v: v["dpo"].update(loss="ppo"), "dpo.loss: 'ppo' is not allowed. Input should be 'sigmoid', 'ipo'"),
        (lambda v: v["sft"].pop("epochs"), "sft.epochs: missing; every parameter is stated in params.yaml."),
        (lambda v: v.update(extra=1), "extra: no such parameter. Allowed here: seed, budget_flops,"),
        (lambda v: v["dedup"].update(bands=7), "dedup: permutations (120) must be a multiple of bands (7)"),
        (lambda v: v["data"]["sft"].update(path="a/*.jsonl"), "data.sft: 'a/*.jsonl' is a pattern; put the folder in"),
        (lambda v: v.update(seed="x"), "seed: 'x' is not allowed. Input should be a valid integer"),
        (lambda v: v["sizing"].update(batch_tokens="big"), "sizing.batch_tokens: 'big' is not allowed."),
        (lambda v: v.update(dpo=3), "dpo: 3 is not allowed."),
        (lambda v: v.update(budget_flops=1e40), "budget_flops: 1e+40 is too large for any data"),
        (lambda v: v["dedup"].update(ngram=10**3000), "dedup.ngram: 1000000"),
        (
            lambda v: v["gate"].update(metric="preferences", margin=0.01),
            "gate: metric and margin are now metrics, one or more. Write metrics: {not_worse_by: {}, better_by: "
            "{preferences: 0.01}} and examples: 10",
        ),
        (lambda v: v["data"]["sft"].update(path=""), "data.sft.path: '' is not allowed."),
        (lambda v: v["data"]["sft"].update(path="a\0b"), "data.sft.path: 'a\\x00b' is not allowed."),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(tmp_path, change, says):
    path = write(tmp_path / "params.yaml", change)
    assert message(path).startswith(f"{path}: {says}")


def test_no_key_is_hidden_from_the_run_cache(tmp_path):
    """`dvc repro` answered a change of any ``size.*`` with the old result."""
    assert not list(hidden_from_run_cache(YAML(typ="safe").load(SHIPPED)))
    assert not {"size", "nfiles"} & set(_field_names(Params))
    path = write(tmp_path / "params.yaml", lambda v: v["data"]["sft"].update(weights={"size": 2.0}))
    assert message(path).startswith(f"{path}: data.sft.weights.size: DVC's run cache ignores keys of this name")
    keys = list(hidden_from_run_cache({"a": [{"nfiles": 1}], "size": {"size": 1}}))
    assert keys == ["a.0.nfiles", "size", "size.size"]


def _field_names(section):
    for name, field in section.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _field_names(field.annotation)


def test_two_errors_are_two_lines(tmp_path):
    path = write(tmp_path / "params.yaml", lambda v: (v["dpo"].update(beta=0), v["sft"].update(epochs=0)))
    assert len(message(path).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"a: [1", "not valid YAML"), (b"- 1", "expected keys and values, found list"), (b"\xff\x00", "not valid YAML")],
)
def test_what_is_no_mapping_is_one_clear_error(tmp_path, content, says):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert says in message(path)


@pytest.mark.parametrize(
    "line",
    [
        "seed: 2020-99-99",
        "seed: !!int x",
        "seed: !!float x",
        f"seed: {'9' * 5000}",
        "seed: 0\nseed: 0",
        "seed: !!python/object:os.system x",
        "seed: !!binary xx",
        "seed: [*nothing]",
        "seed: &a [*a]",
        "seed: &a {b: *a}",
        "seed: 0\n1: 2",
        "seed: 0\n? [a, b]\n: 1",
        "seed: 0\n? {a: b}\n: 1",
        "seed: !!set {a, b}",
        "seed: 2020-01-01",
        "seed: 0\n<<: 3",
        "seed: 0\n--- {}",
        "seed: .nan",
        "seed: \x00",
        'seed: 0\n"a\\nb": 1',
        "seed: " + "[" * 100_000,
        "seed: " + "[" * 40 + "]" * 40,
        "seed: {" + ", ".join(f"k{i}: {'x' * 50}" for i in range(500)) + "}",
        "seed: " + "x" * 100_000,
        "\n".join(f"unknown{i}: 0" for i in range(500)),
    ],
)
def test_params_of_any_shape_end_in_short_lines_at_once(tmp_path, line):
    path = tmp_path / "params.yaml"
    path.write_text(SHIPPED.read_text().replace("seed: 0", line))
    began = time.process_time()
    lines = message(path).splitlines()
    assert time.process_time() - began < 2
    assert len(lines) <= 11 and all(str(path) in text and len(text) < 1500 for text in lines)


@pytest.mark.parametrize("levels", [5, 9])
@pytest.mark.parametrize("place", ["languages: [en]", "weights: {}}", "vocab_size: 4096", "seed: 0"])
def test_aliases_that_multiply_end_in_one_short_line_at_once(tmp_path, place, levels):
    bomb = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    bomb += [f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    key = place.split(":")[0]
    used = SHIPPED.read_text().replace(place, f"{key}: *a{levels - 1}" + "}" * (place[-2:] == "}}"))
    path = tmp_path / "params.yaml"
    path.write_text("\n".join(bomb) + "\n" + used)
    began = time.process_time()
    assert all(len(line) < 700 for line in message(path).splitlines())
    assert time.process_time() - began < 2


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "broken link", "UTF-16", "device"])
def test_params_that_are_no_text_file_are_one_line(tmp_path, kind):
    path = tmp_path / "params.yaml"
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path),
        "broken link": lambda: path.symlink_to("/nonexistent"),
        "UTF-16": lambda: path.write_text(SHIPPED.read_text(), encoding="utf-16"),
        "device": lambda: path.symlink_to("/dev/zero"),
    }[kind]()
    assert message(path).startswith(str(path)) and len(message(path).splitlines()) == 1


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5), st.dates(),
    st.sampled_from([10**400, -(10**30), 1e308, float("nan"), "auto", "*", "\ud800", "a\nb", "${x}", [], {}]),
)  # fmt: skip
KEYS = st.one_of(st.text(max_size=8), st.integers(), st.none(), st.sampled_from(["size", "path", "weights", "*"]))
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8)


def _places(value, prefix=()):
    """The path of every value in nested dictionaries."""
    for key, inner in value.items():
        yield (*prefix, key)
        if isinstance(inner, dict):
            yield from _places(inner, (*prefix, key))


@given(st.sampled_from(list(_places(YAML(typ="safe").load(SHIPPED)))), VALUES, KEYS, st.booleans())
def test_any_value_anywhere_is_taken_or_refused_in_lines(place, value, key, beside):
    raw = section = YAML(typ="safe").load(SHIPPED)
    for name in place[:-1]:
        section = section[name]
    section[key if beside else place[-1]] = value
    try:
        digest(validated(raw, "params.yaml").model_dump())
    except UserError as e:
        assert all(line.startswith("params.yaml: ") and line.isprintable() for line in str(e).splitlines())


@given(st.data())
def test_any_damage_to_the_file_is_taken_or_refused_in_lines(data):
    text = SHIPPED.read_text()
    at = data.draw(st.integers(0, len(text)))
    pieces = ["\t", "\0", "&a ", "*a", "!!int ", "? ", ": ", "- ", "[", "}", '"', "%", "|", "---\n", "<<: ", "9" * 5000]
    inserted = data.draw(st.lists(st.sampled_from(pieces) | st.text(max_size=3), max_size=4))
    path = Path(tempfile.gettempdir(), f"verdict-params-{os.getpid()}.yaml")
    damaged = text[:at] + "".join(inserted) + text[at + data.draw(st.integers(0, 30)) :]
    path.write_bytes(damaged.encode("utf-8", "surrogatepass"))
    try:
        load_params(path)
    except UserError as e:
        assert len(str(e)) < 5000
    finally:
        path.unlink()


def test_workers_get_the_parameters_of_the_parent(tmp_path, monkeypatch):
    params = load_params(SHIPPED)
    for name, value in worker.worker_environment(tmp_path, tmp_path, params).items():
        monkeypatch.setenv(name, value)
    assert worker.params() == params


def test_source_that_is_one_file_may_have_a_pattern_for_a_name(tmp_path):
    (tmp_path / "a[1]*.jsonl").touch()
    path = write(tmp_path / "params.yaml", lambda v: v["data"]["sft"].update(path="a[1]*.jsonl"))
    assert load_params(path).data.sft.path == "a[1]*.jsonl"


def test_a_missing_file_says_where_to_run_from(tmp_path):
    assert "Run from the repository's root" in message(tmp_path / "params.yaml")
