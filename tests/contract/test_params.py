from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.contract import UserError
from stages.contract.params import load_params

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
        (lambda v: v["size"].update(batch_tokens="big"), "size.batch_tokens: 'big' is not allowed."),
        (lambda v: v.update(dpo=3), "dpo: 3 is not allowed."),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(tmp_path, change, says):
    path = write(tmp_path / "params.yaml", change)
    assert message(path).startswith(f"{path}: {says}")


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


def test_a_missing_file_says_where_to_run_from(tmp_path):
    assert "Run from the repository's root" in message(tmp_path / "params.yaml")
