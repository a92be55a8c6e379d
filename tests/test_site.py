"""The documentation in a browser: no page is wider than the window, says an error or asks another host."""

import functools
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.debian import installed

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (1440, 390)
# Tables, code and diagrams may scroll inside their own box; nothing else may reach beyond the window.
WIDER = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = e => { for (; e && !e.matches('.md-content'); e = e.parentElement)
    if (getComputedStyle(e).overflowX !== 'visible') return true; return false; };
  const wide = [...document.querySelectorAll('.md-content *')].filter(
    e => e.getBoundingClientRect().width && e.getBoundingClientRect().right > width + 1 && !scrolls(e));
  const whole = document.documentElement.scrollWidth;
  return [...(whole > width ? [whole] : []), ...wide.slice(0, 3).map(e => e.tagName + e.textContent.slice(0, 60))];
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """(folder, address) of the documentation, built and served."""
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "docs/generate.py"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_no_page_is_wider_than_a_desktop_or_a_phone(site):
    from playwright.sync_api import sync_playwright

    folder, address = site
    chromium = installed("chromium", "chromium")
    wrong = {}
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=chromium) as browser:
        for width in WIDTHS:  # a page of its own for each: Material's drawers move when a window changes its width
            page = browser.new_page(viewport={"width": width, "height": 900})
            seen = []
            page.on("console", lambda line, seen=seen: seen.append(line.text) if line.type == "error" else None)
            page.on("request", lambda asked, seen=seen: seen.append(asked.url))
            for index in sorted(folder.rglob("index.html")):
                name = index.relative_to(folder).parent.as_posix()
                page.goto(f"{address}{name}/")
                outside = [line for line in seen if not line.startswith((address, "data:", "blob:"))]
                if found := [*outside, *page.evaluate(WIDER)]:
                    wrong[f"{name} at {width}"] = found
                seen.clear()
    assert wrong == {}
