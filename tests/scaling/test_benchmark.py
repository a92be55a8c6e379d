"""`python -m benchmarks.forecasts` on made-up points."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import forecasts
from tests.scaling.test_forecast import CHINCHILLA, measured


def write(path: Path, columns: list[str], rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["forecasts", *map(str, arguments)])
    return forecasts.main()


@pytest.mark.parametrize("folder", [[], ["nowhere"]])
def test_missing_folder_is_one_line(monkeypatch, capsys, folder):
    assert run(monkeypatch, *folder) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("No folder of published points") and printed.count("\n") == 1


def test_cuts_and_grids_are_printed(monkeypatch, capsys, tmp_path):
    points = measured(CHINCHILLA, np.geomspace(1e18, 1e20, 5), 0.002, seed=0)
    rows = zip(points.parameters, points.tokens, points.budgets, points.losses, strict=True)
    write(
        tmp_path / "isoflops.csv", ["experiment", "params", "tokens", "budget", "loss", "outlier"],
        [*(("made-up", *row, "False") for row in rows), ("made-up", 1e8, 1e9, 1e18, 99.0, "True")],
    )  # fmt: skip
    grids = [
        (n, d, rate, batch / 2048, 2 + 0.01 * np.log(rate / best[0]) ** 2 + 0.01 * np.log(batch / best[1]) ** 2)
        for n, d in [(1e8, 1e10), (3e8, 1e10), (3e8, 3e10), (1e9, 1e11)]
        for best in [forecasts.step_law(n, d)]
        for rate in best[0] * np.geomspace(0.25, 4, 9)
        for batch in best[1] * np.geomspace(0.25, 4, 9)
    ]
    write(tmp_path / "grids.csv", ["N", "D", "lr", "bs", "loss"], grids)
    assert run(monkeypatch, tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    cut = next(line.split() for line in lines if line.startswith("made-up"))
    assert cut[2:4] == ["28", "7"] and float(cut[4]) < 1
    assert any(line.startswith("Inside the 90 % interval: 7 of 7") for line in lines)
    mean = next(line.split() for line in lines if line.strip().startswith("mean ") and "experiment" not in line)
    assert [float(figure) for figure in mean[1:4]] == pytest.approx([0, 0, 0], abs=0.01)
