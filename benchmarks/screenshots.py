"""The documentation's pictures of Prefect and MLflow, as headless Chromium shows them.

    python -m benchmarks.screenshots [PREFECT MLFLOW]    # http://127.0.0.1:4200 and http://127.0.0.1:5000

Writes what `make serve` shows into docs/images. The pictures there are of three runs, with the two addresses that
`make serve` prints: `make run`; `python -m flows.retrain`, which made its model champion; and a second retrain after a
commit with `dpo.beta: 0.2`. Chromium is Debian's: apt-get install chromium.
"""

import io
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from flows.servers.door import basic
from flows.servers.login import login

COMPLETED, TIMELINE = (33, 157, 75), 20  # Prefect's green; the height of the run's own bar below its graph
FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1280, "height": 800}
PATIENCE = 180  # seconds for a page to be drawn
# MLflow opens with its pages for agents, and an assistant over a quarter of the window.
MLFLOW = {"mlflow.workflowType_v1": '"machine_learning"', "mlflow.assistant.panelOpen_v1": "false",
          "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}  # fmt: skip


@dataclass(frozen=True)
class Api:
    """Prefect's REST API at ``url``, any path of it, asked with ``login`` (user:password)."""

    url: str
    login: str
    client: str = field(default_factory=lambda: str(uuid.uuid4()))  # the owner of the CSRF tokens

    def get(self, path: str) -> Any:
        """Return the answer to a GET of ``path``; raise httpx.HTTPError for an error."""
        return self._ask("GET", path, {})

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Return the answer to a POST of ``body`` to ``path``; raise httpx.HTTPError for an error."""
        token = self.get(f"/csrf-token?client={self.client}")["token"]
        return self._ask("POST", path, {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": self.client}, body)

    def _ask(self, method: str, path: str, headers: dict[str, str], body: dict[str, Any] | None = None) -> Any:
        headers |= {"Authorization": basic(self.login)}
        end = time.monotonic() + PATIENCE
        # No proxy reaches this machine's loopback; to load certificates, of no use there, takes 48 ms of CPU a call.
        with httpx.Client(trust_env=False, verify=False, timeout=PATIENCE) as client:
            while True:
                answer = client.request(method, self.url + path, json=body, headers=headers)
                if answer.status_code != 503 or time.monotonic() > end:  # 503: SQLite is busy with another's write
                    return answer.raise_for_status().json()
                time.sleep(0.2)


@contextmanager
def window(chromium: str, login: str, *options: str) -> Iterator:
    """Open a page of the browser at the path ``chromium``, started with ``options``, that is logged in to the servers
    of `make serve`. It reaches this machine only."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        user, _, password = login.partition(":")
        answer = {"username": user, "password": password}  # when the browser asks, as MLflow makes it do
        context = browser.new_context(viewport=SIZE, locale="en-US", timezone_id="UTC", http_credentials=answer)
        context.set_default_timeout(1000 * PATIENCE)
        context.route(lambda url: not url.startswith("http://127.0.0.1:"), lambda route: route.abort())
        for key, value in MLFLOW.items():
            context.add_init_script(f"localStorage.setItem({key!r}, {value!r})")
        yield context.new_page()
        browser.close()


def log_in(page, prefect: str, login: str) -> None:
    """Answer Prefect's page that asks for the login."""
    page.goto(prefect)
    page.get_by_placeholder("admin:pass").fill(login)
    page.get_by_role("button", name="Login").click()
    page.get_by_text("Flow Runs").first.wait_for()


def pipelines(api: Api) -> list[dict]:
    """The runs of the flow `pipeline`, newest first."""
    query = {"flows": {"name": {"any_": ["pipeline"]}}, "sort": "START_TIME_DESC"}
    return api.post("/flow_runs/filter", query)


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


def artifact(page, prefect: str, api: Api, key: str) -> None:
    """Open the newest artifact of this key."""
    found = api.post("/artifacts/latest/filter", {"artifacts": {"key": {"any_": [key]}}})
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
    secret = login(Path(".verdict"))
    api = Api(f"{prefect}/api", secret)
    runs = pipelines(api)
    with window(chromium, secret) as page:
        log_in(page, prefect, secret)
        boxes = graph(page, prefect, runs[0]["id"])
        select(page, boxes[-1])
        _save(page, "prefect-run")
        artifact(page, prefect, api, "stages")
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
