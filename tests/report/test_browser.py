"""A page in a real browser: every figure is drawn, and nothing is fetched."""

import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from tests.report.test_compare import family
from vitscale.report import compare, page
from vitscale.report.pictures import Picture

NAMES = (
  "chromium-headless-shell", "chromium", "chromium-browser", "google-chrome",
  "chrome",
)  # fmt: skip
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    BROWSER is None,
    reason="no browser: apt-get install chromium-headless-shell",
  ),
]


class Figures(html.parser.HTMLParser):
  """Figure id -> classes of all that is inside, as the browser has it."""

  def __init__(self):
    super().__init__()
    self.found, self.now = {}, None

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    if tag == "figure":
      self.now = self.found.setdefault(attrs["id"], [])
    elif self.now is not None:
      self.now.append(attrs.get("class") or "")

  def handle_endtag(self, tag):
    if tag == "figure":
      self.now = None


def opened(path, folder):
  """(figures of the page after its scripts ran, what the console said)."""
  process = subprocess.run(
    [
      BROWSER, "--headless", "--disable-gpu", f"--user-data-dir={folder}",
      *(["--no-sandbox"] if os.getuid() == 0 else []),
      "--proxy-server=127.0.0.1:9",  # answers nothing
      "--enable-logging=stderr", "--virtual-time-budget=20000",
      "--window-size=1200,2000", "--dump-dom", path.as_uri(),
    ],
    capture_output=True, text=True, timeout=180,
  )  # fmt: skip
  assert process.returncode == 0, process.stderr
  figures = Figures()
  figures.feed(process.stdout)
  return figures.found, re.findall(r".*CONSOLE.*", process.stderr)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  picture = Picture("sheet", "Images", np.zeros((8, 8, 3), np.uint8))
  return page.write(
    tmp_path_factory.mktemp("page") / "runs.html",
    title="Runs",
    sections=[
      page.Section("Images", pictures=[picture]),
      *compare.sections(family(0.003)),
    ],
  )


def test_every_figure_is_drawn(written, tmp_path):
  figures, console = opened(written, tmp_path / "profile")
  assert not console
  report = json.loads((written.parent / "report.json").read_text())
  names = [figure["name"] for figure in report["figures"]]
  assert set(figures) == {*names, "sheet"} and "law" in names
  for figure in report["figures"]:
    classes = figures[figure["name"]]
    assert any("js-plotly-plot" in c.split() for c in classes)
    # One trace a mark, two a band; one pair of axes a panel.
    marks = [m for panel in figure["panels"] for m in panel["marks"]]
    bands = sum("y" not in mark for mark in marks)
    traces = sum(c.split()[:2] == ["trace", "scatter"] for c in classes)
    assert traces == len(marks) + bands, figure["name"]
    axes = sum("subplot" in c.split() for c in classes)
    assert axes == len(figure["panels"]), figure["name"]


def test_a_page_that_is_broken_is_seen(written, tmp_path):
  text = written.read_text()
  start = '<figure id="curve-1">'
  assert start in text and '"data"' in text
  head, tail = text.split(start)
  broken = tmp_path / "broken.html"
  broken.write_text(head + start + tail.replace('"data"', '"dat"', 1))
  figures, console = opened(broken, tmp_path / "profile")
  drawn = [
    name
    for name, classes in figures.items()
    if any("trace scatter" in c for c in classes)
  ]
  assert "curve-1" not in drawn and "law" in drawn, console


def test_nothing_outside_is_fetched(written, tmp_path):
  """The policy forbids it, even for a script that is in the page."""
  text = written.read_text()
  call = 'fetch("https://example.org/x").catch(() => {});'
  curious = tmp_path / "curious.html"
  curious.write_text(text.replace("</body>", f"<script>{call}</script></body>"))
  _, console = opened(curious, tmp_path / "profile")
  assert any("Content Security Policy" in line for line in console)
