"""dvc.yaml states everything a stage reads: the modules whose code can change its outs, and its parameters."""

import ast
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]

PARAMS = YAML(typ="safe").load(ROOT / "params.yaml")
SECTIONS = {*PARAMS, *(f"data.{source}" for source in PARAMS["data"])}

# What records, reports and guards a run cannot change its outs; the parameters it parses are listed by key.
NO_IDENTITY = "stages/contract/"


def imported(path: Path) -> set[Path]:
    """Modules of this repository that ``path`` imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            package = ROOT / name.replace(".", "/") / "__init__.py"
            found |= {p for p in (file, package) if name.startswith("stages.") and p.exists()}
    return found


def reachable(path: Path) -> set[str]:
    seen, todo = set(), [path]
    while todo:
        module = todo.pop()
        if module not in seen and not str(module.relative_to(ROOT)).startswith(NO_IDENTITY):
            seen.add(module)
            todo += imported(module)
    return {str(p.relative_to(ROOT)) for p in seen if p.name != "__init__.py"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_code_it_runs(name):
    listed = {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert listed == reachable(ROOT / "stages" / f"{name}.py")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_exactly_the_parameters_it_reads(name):
    """By section, and for `data` by source: every `params.section` in the code the stage runs is in `params:`."""
    read = set()
    for module in reachable(ROOT / "stages" / f"{name}.py"):
        text = (ROOT / module).read_text()
        read |= set(re.findall(r"\bparams\.(data\.\w+|\w+)", text)) & SECTIONS
    listed = {key if key.startswith("data.") else key.split(".")[0] for key in STAGES[name]["params"]}
    assert read == listed


def test_stages_and_their_folders_have_one_name():
    for name, stage in STAGES.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert stage["outs"] == [f"out/{name}", f"reports/{name}"]
        assert stage["deps"] == sorted(stage["deps"])
        assert stage["params"] == sorted(stage["params"])
