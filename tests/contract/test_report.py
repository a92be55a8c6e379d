import json

from stages.contract import Run


def reported(folder, metrics, headline=()):
    Run("toy", None, folder, folder, folder, None).report(metrics, headline)
    return [json.loads((folder / name).read_text()) for name in ("metrics.json", "headline.json")]


def test_by_default_the_headline_is_every_number_at_the_top(tmp_path):
    metrics = {"documents": 3, "name": "x", "by_source": {"a": 1}}
    assert reported(tmp_path, metrics) == [metrics, {"documents": 3}]


def test_named_figures_are_taken_from_any_depth_and_missing_ones_left_out(tmp_path):
    metrics = {"bits": {"base": {"overall": 2.5}}, "loss": "no held-out conversation"}
    assert reported(tmp_path, metrics, ("bits.base.overall", "loss.base"))[1] == {"bits.base.overall": 2.5}
