import json
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from stages import eval as eval_stage
from stages import forecast
from stages.contract import Run

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 160


def reported(folder, metrics, headline=None):
    Run("toy", None, folder, folder, folder, None).report(metrics, headline)
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir()}


def test_metrics_without_a_headline_are_one_file(tmp_path):
    metrics = {"documents": 3, "name": "x", "by_source": {"a": 1}}
    assert reported(tmp_path, metrics) == {"metrics.json": metrics}


def test_headline_takes_figures_from_any_depth_and_skips_missing_ones(tmp_path):
    metrics = {"bits": {"base": {"overall": 2.5}}, "loss": "no held-out conversation"}
    headline = {"bits_per_byte": "bits.base.overall", "loss": "loss.base"}
    assert reported(tmp_path, metrics, headline)["headline.json"] == {"bits_per_byte": 2.5}


def test_dvc_metrics_show_fits_a_terminal(tmp_path):
    metrics = YAML(typ="safe").load(ROOT / "dvc.yaml")["metrics"]
    names = {
        "size": ["parameters"],
        "forecast": forecast.HEADLINE,
        "pretrain": ["validation_loss"],
        "eval": eval_stage.HEADLINE,
    }
    assert metrics == [f"reports/{stage}/headline.json" for stage in names]
    YAML().dump({"metrics": metrics}, tmp_path / "dvc.yaml")
    for path, figures in zip(metrics, names.values(), strict=True):
        (tmp_path / path).parent.mkdir(parents=True)
        values = {name: 1 if name == "inside" else -12.345678 for name in figures}
        (tmp_path / path).write_text(json.dumps(values))
    for command in (["init", "-q", "--no-scm"], ["metrics", "show"]):
        shown = subprocess.run([sys.executable, "-m", "dvc", *command], cwd=tmp_path, capture_output=True, text=True)
    assert "reward_margin" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= COLUMNS
