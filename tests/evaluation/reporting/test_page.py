"""The report page: complete from what stages report, safe with any text, readable on a desktop and a phone."""

import csv
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contract import Account, UserError
from stages.evaluation.reporting.charts import Axis, Line, compact, line_chart
from stages.evaluation.reporting.page import write_page
from tests.debian import installed
from tests.evaluation.reporting.test_summary import report

WIDTHS = (1440, 390)
EVIL = '<script>alert(1)</script><img src="http://example.org/x">'


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def curve(path, columns, steps=600):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", *columns])
        rows.writerows([step, *(math.exp(-step / 100) + k for k in range(len(columns)))] for step in range(steps))


@pytest.fixture
def root(tmp_path):
    """A repository in which all stages have reported."""
    reports, (metrics, _) = tmp_path / "reports", report()
    account = Account("data.sft", "conversations", 9, 4, {EVIL: 2}, {"x" * 300: 1, "cut": 1, "held out": 1}).figures()
    write(reports / "eval/metrics.json", metrics)
    write(reports / "eval/headline.json", {"bits_per_byte": 2.5, "reward_margin": -0.25, "inside": 1})
    write(reports / "chats/metrics.json", {"records": {"data.sft": account}})
    write(reports / "pretrain/metrics.json", {"parameters": 92320, "validation_loss": 4.75})
    write(tmp_path / "out/size/plan.json", {"parameters": 92320, "tokens": 1200000, "steps": 600})
    write(reports / "size/isoflop.csv", "parameters,predicted_loss,split\n1000,5.5,same budget\n92320,4.5,chosen\n")
    write(reports / "forecast/metrics.json", {"loss": 4.875, "rungs": 3})
    write(reports / "forecast/law.csv", "flops,loss,split\n1e9,6.5,rung\n1e9,6.4,law\n1e11,4.8,law\n1e11,4.8,target\n")
    for stage in ("pretrain", "sft", "dpo", "ladder/0.1-20", "ladder/0.2-20"):
        curve(reports / stage / "loss.csv", ["loss", "learning_rate"])
    curve(reports / "dpo/rewards.csv", ["rewards/margins", "rewards/accuracies"])
    write(reports / "pretrain/validation.csv", "step,eval_loss\n300,5.0\n600,4.75\n")
    answers = {name: {"answer": f"{EVIL} {'long' * 80}", "ended": name == "dpo"} for name in ("base", "sft", "dpo")}
    sample = {"messages": [{"role": "user", "content": "What is 1 < 2?"}]} | answers
    write(reports / "eval/samples.jsonl", "".join(json.dumps(sample) + "\n" for _ in range(12)))
    write(tmp_path / "params.yaml", f"seed: 0  # {EVIL}\n")
    lock = {"cmd": "python -m stages.dpo", "deps": [{"path": "data/sft", "md5": "d" * 32}],
            "outs": [{"path": "out/dpo", "md5": "a" * 32 + ".dir"}]}  # fmt: skip
    write(tmp_path / "dvc.lock", {"stages": {"dpo": lock, "eval": lock}})
    return tmp_path


def test_page_has_all_parts_of_a_run(root):
    text = write_page(root, running="eval").read_text(encoding="utf-8")
    for part in ("Bits per byte on held-out text", "data.sft", "held out", "What is 1 &lt; 2?", "seed: 0", "a" * 32,
                 "git checkout", "Pretraining loss", "Learning rate, DPO", "92,320", "1,200,000", "4.875",
                 "fitted law", "0.2-20", "loss inside the interval<b>yes</b>"):  # fmt: skip
        assert part in text
    assert text.count("<svg") == 11
    assert "<|im_start|>" not in text and "<td>eval</td>" not in text and "<td>dpo</td>" in text


def test_page_escapes_every_text(root):
    text = write_page(root).read_text(encoding="utf-8")
    assert "<script" not in text and "<img" not in text
    assert text.count("&lt;script&gt;") == 1 + 36 + 1


def test_page_is_the_same_for_the_same_run(root):
    assert write_page(root).read_bytes() == write_page(root).read_bytes()


def test_page_of_the_first_stages_leaves_the_others_out(tmp_path):
    write(tmp_path / "reports/size/metrics.json", {"parameters": 92320})
    write(tmp_path / "out/size/plan.json", {"parameters": 92320})
    text = write_page(tmp_path).read_text(encoding="utf-8")
    assert "Planned and reached" in text and "Samples" not in text and "Results" not in text


def test_page_without_reports_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(UserError, match="no stage has reported anything"):
        write_page(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"bits_per_byte": 3}'])
def test_reports_of_another_version_are_one_line(root, text):
    write(root / "reports/eval/metrics.json", text)
    with pytest.raises(UserError, match="not written by this version's stages"):
        write_page(root)


def test_page_in_a_browser_fits_a_desktop_and_a_phone(root):
    from playwright.sync_api import sync_playwright

    page_file = write_page(root)
    with sync_playwright() as playwright, playwright.chromium.launch(
        executable_path=installed("chromium", "chromium")
    ) as browser:  # fmt: skip
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            seen = []
            page.on("console", lambda line, seen=seen: seen.append(line.text))
            page.on("request", lambda request, seen=seen: seen.append(request.url))
            page.goto(page_file.as_uri())
            for details in page.locator("details").all():
                details.evaluate("element => element.open = true")
            assert seen == [page_file.as_uri()]
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert all(box.bounding_box()["width"] > 200 for box in page.locator("svg").all())


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=50))
def test_ticks_are_few_and_inside_the_axis(values):
    axis = Axis(min(values), max(values), 0, 100)
    ticks = axis.ticks()
    assert len(ticks) <= 12
    slack = 1e-6 * max(1.0, abs(axis.low), abs(axis.high))
    assert all(axis.low - slack <= tick <= axis.high + slack for tick in ticks)


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(-1e9, 1e9)), max_size=30), st.booleans())
def test_any_line_can_be_drawn_inside_the_picture(points, log_x):
    drawn = line_chart([Line("a", sorted(points))], "x", "y", log_x)
    assert ("<svg" in drawn) == bool(points) and "nan" not in drawn


def test_long_lines_keep_their_last_point():
    drawn = line_chart([Line("loss", [(float(step), float(step)) for step in range(100_001)])], "step", "loss")
    assert len(drawn) < 20_000 and "466.0," in drawn


def test_numbers_are_compact():
    assert [compact(v) for v in (0, 0.001, 2.5, 12000, 1.5e9, 5e-05)] == [
        "0",
        "0.001",
        "2.5",
        "12,000",
        "1.5e+09",
        "5e-05",
    ]
