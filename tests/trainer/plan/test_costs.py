"""Hours, energy and money follow from FLOPs and the table; a wrong row is named."""

from pathlib import Path

import pytest

from stages.contract.errors import UserError
from stages.trainer.plan.costs import Gpu, cost_table, read_gpus

ROOT = Path(__file__).resolve().parents[3]


def test_cost_is_hours_times_power_and_price():
    lines = cost_table(3.6e18, [Gpu("card", 100.0, 500.0, 2.0)], 0.5).splitlines()
    assert "at 50% of its peak (measured here)" in lines[0]
    assert lines[-1].split() == ["card", "20", "10", "40.00"]
    assert "40% of its peak (assumed)" in cost_table(3.6e18, [], None)


def test_shipped_table_can_be_read():
    gpus = read_gpus(ROOT / "params/gpus.csv")
    assert "H100 SXM" in {gpu.name for gpu in gpus}
    assert read_gpus(ROOT / "params/none.csv") == []


@pytest.mark.parametrize("row", ["card,many,1,1", "card,1", "card,0,1,1"])
def test_wrong_row_is_one_line_with_its_place(row, tmp_path):
    (tmp_path / "gpus.csv").write_text(f"name,bf16_tflops,watts,usd_per_hour\n{row}\n")
    with pytest.raises(UserError, match=r"gpus.csv:2: ") as error:
        read_gpus(tmp_path / "gpus.csv")
    assert "\n" not in str(error.value)
