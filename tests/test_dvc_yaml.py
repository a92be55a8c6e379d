"""dvc.yaml states everything a stage reads: the rooms whose code can change its outs, and its parameters."""

import ast
import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.contract.inputs import CACHES

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


def rooms(name: str) -> set[str]:
    """The stage's own file, and the folders of the modules it reaches; one folder for all of its rooms."""
    own = f"stages/{name}.py"
    reached = {str(Path(module).parent) for module in reachable(ROOT / own) - {own}}
    for parent in {str(Path(room).parent) for room in reached} - {"stages"}:
        inside = {str(path.parent.relative_to(ROOT)) for path in (ROOT / parent).glob("*/__init__.py")}
        if inside <= reached:
            reached = reached - inside | {parent}
    return {own} | reached


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_exactly_the_rooms_it_reaches(name):
    assert {dep for dep in STAGES[name]["deps"] if dep.startswith("stages/")} == rooms(name)


def test_caches_of_python_are_hidden_from_dvc():
    """One file of byte code in a room would make every stage that depends on it run again."""
    from dvc.fs import LocalFileSystem
    from dvc.ignore import DvcIgnoreFilter

    ignored = DvcIgnoreFilter(LocalFileSystem(), str(ROOT))
    assert all(ignored.is_ignored_dir(str(ROOT / "stages/scaling" / name)) for name in CACHES)


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
        command, arguments = re.fullmatch(r"(python -m \S+)((?: \$\{item\.\S+\})*)", stage["cmd"]).groups()
        folder = "/".join(filter(None, [name, "-".join(arguments.split())]))
        assert command == f"python -m stages.{name}" and bool(arguments) == ("matrix" in stage)
        assert stage["outs"] == [f"out/{folder}", f"reports/{folder}"]
        assert stage["deps"] == sorted(stage["deps"])
        assert stage["params"] == sorted(stage["params"])


PLOTS = {name: plot for entry in YAML(typ="safe").load(ROOT / "dvc.yaml")["plots"] for name, plot in entry.items()}


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_filled_by_its_template(name):
    """DVC draws what it does not know as an empty chart; its own bars stack models on one another."""
    from dvc_render.vega import VegaRenderer

    plot = PLOTS[name]
    assert plot.get("y_label") or plot.get("template") == "bar_horizontal", "an axis named y says nothing"
    row = {plot["x"]: 2, "value": 3, "model": "dpo", "split": "chosen", "rev": "workspace", "field": "before"}
    template = {"template": plot["template"]} if "template" in plot else {}
    labels = {"x_label": plot.get("x_label", plot["x"]), "y_label": plot.get("y_label", "reason"), "title": name}
    drawn = VegaRenderer(
        [row], name, x=plot["x"], y="value", template_dir=str(ROOT / ".dvc/plots"), **template, **labels
    )
    assert "<DVC_METRIC" not in json.dumps(drawn.get_filled_template())


def test_bits_per_byte_are_bars_side_by_side():
    template = json.loads((ROOT / ".dvc/plots" / f"{PLOTS['Bits per byte']['template']}.json").read_text())
    assert template["encoding"]["yOffset"]["field"] == "model"
