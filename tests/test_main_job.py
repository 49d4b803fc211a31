"""The main job as a user runs it: `vitscale study patchify --scale smoke`."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.runs import command

CELLS = {
  "strokes-p12-s0", "strokes-p6-s0", "strokes-p4-s0", "strokes-p3-s0",
  "strokes-p2-s0", "longer-p6-s0",
}  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory):
  """(the JSON object, stderr, the folder) of one real run."""
  out = tmp_path_factory.mktemp("job") / "out"
  process = command(
    "study", "patchify", "--scale", "smoke", "--json", "--out", out
  )
  assert process.returncode == 0, process.stderr
  assert process.stdout.count("\n") == 1, process.stdout[:2000]
  strict = {"parse_constant": lambda text: pytest.fail(f"{text} is not JSON")}
  return json.loads(process.stdout, **strict), process.stderr, out


def test_runs(job):
  result, err, out = job
  assert result["study"] == "patchify" and result["scale"] == "smoke"
  assert result["seconds"] > 0
  assert {run["name"] for run in result["runs"]} == CELLS
  for run in result["runs"]:
    assert run["status"] == "finished", run
    assert {"law_variables", "metrics", "elastic"} <= set(run)
    workdir = Path(run["workdir"])
    assert workdir == out / "runs" / run["name"]
    assert list(Path(run["checkpoint"]).glob("*/MANIFEST.json"))
    last = (workdir / "metrics.jsonl").read_text().splitlines()[-1]
    assert run["metrics"] == json.loads(last)
    assert run["metrics"]["step"] == 30
    assert run["metrics"]["eval/test/nll"] > 0
    variables = run["law_variables"]
    patch, size = variables["patch_size"], 12 if variables["arm"] != "longer" \
      else 24  # fmt: skip
    assert variables["tokens_per_example"] == (size // patch) ** 2
  assert "6 of 6 runs finished" in err  # the table, for people


def test_laws_and_verdicts(job):
  result, _, _ = job
  assert result["laws"]
  for law in result["laws"]:
    assert law["name"] and law["n"] == 5
    assert law["params"] and set(law["ci95"]) == set(law["params"])
    assert all(isinstance(x, float) for x in law["params"].values())
  assert result["verdicts"]
  for verdict in result["verdicts"]:
    assert verdict["claim"] and verdict["threshold"] and verdict["measured"]
    # One seed proves nothing.
    assert verdict["verdict"] == "inconclusive"


class Links(HTMLParser):
  """Everything a browser would fetch or follow."""

  def __init__(self):
    super().__init__()
    self.found, self.tags = [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    for name, value in attrs:
      if name in ("src", "href", "srcset", "data", "poster", "action"):
        self.found.append((tag, value))


def test_report_works_offline(job):
  result, _, out = job
  page = Path(result["report"])
  assert page == out / "report.html"
  links = Links()
  links.feed(page.read_text())
  assert links.tags.count("html") == links.tags.count("body") == 1
  outside = [
    (tag, value[:80])
    for tag, value in links.found
    if not value.startswith(("data:", "#"))
  ]
  assert not [x for x in outside if re.match(r"(https?:)?//", x[1])]
  for _, value in outside:  # files beside it
    assert (out / value).is_file(), value
  for verdict in result["verdicts"]:
    assert verdict["verdict"] in page.read_text()


def test_report_json_and_figures(job):
  result, _, out = job
  report = json.loads((out / "report.json").read_text())
  for key in ("study", "scale", "runs", "laws", "verdicts"):
    assert report[key] == result[key], key
  figures = {path.stem: path for path in (out / "figures").glob("*.png")}
  assert set(figures) == {"loss_by_patch", "curves_strokes"}
  for path in figures.values():
    assert path.read_bytes().startswith(b"\x89PNG")
