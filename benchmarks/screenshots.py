"""The README's pictures of Prefect and MLflow, as headless Chromium shows them.

    python -m benchmarks.screenshots [PREFECT MLFLOW]    # http://127.0.0.1:4200 and http://127.0.0.1:5000

Writes what `make serve` shows into benchmarks/screenshots. The README's are of three runs, with the two addresses that
`make serve` prints: `make run`; `python -m flows.retrain`, which made its model champion; and a second retrain after a
commit with `dpo.beta: 0.2`. Chromium is Debian's: apt-get install chromium.
"""

import io
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.serve import call

COMPLETED, TIMELINE = (33, 157, 75), 20  # Prefect's green; the height of the run's own bar below its graph
FOLDER = Path(__file__).with_name("screenshots")
SIZE = {"width": 1280, "height": 800}
PATIENCE = 30  # seconds for a page to be drawn
# MLflow opens with its pages for agents, and an assistant over a quarter of the window.
MLFLOW = {"mlflow.workflowType_v1": '"machine_learning"', "mlflow.assistant.panelOpen_v1": "false",
          "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}  # fmt: skip


@contextmanager
def window(chromium: str) -> Iterator:
    """A page of the browser at the path ``chromium``. It reaches this machine only."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        context = browser.new_context(viewport=SIZE, locale="en-US", timezone_id="UTC")
        context.set_default_timeout(1000 * PATIENCE)
        context.route(lambda url: not url.startswith("http://127.0.0.1:"), lambda route: route.abort())
        for key, value in MLFLOW.items():
            context.add_init_script(f"localStorage.setItem({key!r}, {value!r})")
        yield context.new_page()
        browser.close()


def pipelines(prefect: str) -> list[dict]:
    """The runs of the flow `pipeline`, newest first."""
    query = {"flows": {"name": {"any_": ["pipeline"]}}, "sort": "START_TIME_DESC"}
    return call(f"{prefect}/api/flow_runs/filter", query)


def graph(page, prefect: str, run: str) -> list[tuple[int, int]]:
    """Open the page of a flow run, and return where on it the graph has the boxes of tasks that completed.

    The graph is a picture, drawn in WebGL. What is clicked in it is told beside it (`select`)."""
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    page.goto(f"{prefect}/runs/flow-run/{run}")
    canvas = page.locator("canvas")
    end, count = time.monotonic() + PATIENCE, 0
    while not count and time.monotonic() < end:  # at first it is empty
        pixels = np.asarray(Image.open(io.BytesIO(_still(canvas))).convert("RGB"))
        boxes, count = ndimage.label(ndimage.binary_fill_holes((pixels[:-TIMELINE] == COMPLETED).all(axis=-1)))
    corner = canvas.bounding_box()
    middles = ndimage.center_of_mass(boxes, boxes, range(1, count + 1))
    return [(int(corner["x"] + x), int(corner["y"] + y)) for y, x in middles]


def select(page, box: tuple[int, int]):
    """Click a box of the graph, and return what is shown beside it, once it is there."""
    page.mouse.click(*box)
    panel = page.locator("[class*=selection-panel]")
    panel.get_by_text("Duration").wait_for()
    return panel


def artifact(page, prefect: str, key: str) -> None:
    """Open the newest artifact of this key."""
    found = call(f"{prefect}/api/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
    page.goto(f"{prefect}/artifacts/artifact/{found[0]['latest_id']}")
    page.get_by_text("Show raw data").wait_for()


def curves(page, mlflow: str, pipeline: str, metrics: str) -> None:
    """Open the experiment's charts of ``metrics``, a regular expression, of all pipelines and of the stages' runs
    below the one of this name."""
    page.goto(f"{mlflow}/#/experiments/1/runs?compareRunsMode=CHART")
    page.get_by_role("row").filter(has_text=pipeline).get_by_role("button").click()
    page.get_by_placeholder("Search metric charts").fill(metrics)
    page.locator("path.js-line").first.wait_for()


def model(page, mlflow: str, name: str) -> None:
    """Open the registered model, with its versions and their aliases."""
    page.goto(f"{mlflow}/#/models/{name}")
    page.get_by_text("@ champion").wait_for()


def _still(part) -> bytes:
    """The picture of a page or of a part of it, once it changes no more."""
    end, before, now = time.monotonic() + PATIENCE, b"", part.screenshot()
    while now != before and time.monotonic() < end:
        time.sleep(0.3)
        before, now = now, part.screenshot()
    return now


def _save(page, name: str) -> None:
    from PIL import Image

    picture = Image.open(io.BytesIO(_still(page))).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)


def main(prefect: str = "http://127.0.0.1:4200", mlflow: str = "http://127.0.0.1:5000") -> None:
    chromium = shutil.which("chromium") or sys.exit("error: no chromium on this machine. apt-get install chromium")
    runs = pipelines(prefect)
    with window(chromium) as page:
        boxes = graph(page, prefect, runs[0]["id"])
        select(page, boxes[-1])
        _save(page, "prefect-run")
        artifact(page, prefect, "stages")
        _save(page, "prefect-artifact")
        curves(page, mlflow, runs[-1]["name"], "^(eval_loss|learning_rate|loss|stop_probability|tokens_per_second)$")
        _save(page, "mlflow-runs")
        model(page, mlflow, "verdict")
        page.mouse.move(700, 600)
        page.mouse.wheel(0, 215)  # to where both versions are seen
        page.mouse.move(1100, 20)
        _save(page, "mlflow-model")


if __name__ == "__main__":
    main(*sys.argv[1:])
