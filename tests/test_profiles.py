"""Profiles of params/ are complete: each is valid, has the keys of params.yaml, and plans a model that fits."""

from pathlib import Path

import pytest

from stages.contract.params import load_params
from stages.contract.yaml_file import parse_yaml
from stages.scaling.budget import plan_of
from stages.scaling.shapes import Shape
from stages.trainer.plan.hardware import Hardware
from stages.trainer.plan.recipe import resolve

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30
H100 = Hardware("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB, True, 200 * GIB, (9, 0))
MACHINES = {  # profile -> the machine it is for, and the hours it promises there at 40 % of the peak
    "laptop": (Hardware("cpu", "8 threads", 16 * GIB, True, 16 * GIB), None),
    "gpu": (H100, (6, 9)),
    "8gpu": (Hardware("cuda", H100.name, 80 * GIB, True, 1000 * GIB, (9, 0), 8), (6, 10)),
}


def keys(value, prefix=""):
    """Dotted keys of every section; of mappings that a person fills (weights), the name alone."""
    if not isinstance(value, dict) or not value or prefix.endswith(("weights.", "fields.")):
        return {prefix.rstrip(".")}
    return {key for name, inner in value.items() for key in keys(inner, f"{prefix}{name}.")}


def test_every_profile_is_for_a_machine_of_this_test():
    assert {file.stem for file in (ROOT / "params").glob("*.yaml")} == MACHINES.keys()


@pytest.mark.parametrize("name", MACHINES)
def test_profile_has_the_keys_of_params_yaml(name):
    ours, theirs = (
        keys(parse_yaml(file.read_text(), file)) for file in (ROOT / "params.yaml", ROOT / f"params/{name}.yaml")
    )
    assert ours == theirs, f"params/{name}.yaml lacks {ours - theirs} or has more: {theirs - ours}"


@pytest.mark.parametrize("name", MACHINES)
def test_profile_plans_a_model_that_fits(name):
    machine, hours = MACHINES[name]
    params = load_params(ROOT / f"params/{name}.yaml")
    plan = plan_of(params, params.tokenizer.vocab_size, float("inf"))
    recipe = resolve(machine, Shape.of(plan.model), plan.batch_rows, params.pack.row_tokens, params.trainer)
    assert recipe.processes == machine.count and recipe.offload == "none"
    if hours:
        seconds = plan.flops / (0.4 * machine.peak_flops * machine.count)
        assert hours[0] < seconds / 3600 < hours[1]
