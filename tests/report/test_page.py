"""One offline page; both renderings of a figure show the same thing."""

import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest

from vitscale import laws
from vitscale.report import draw_html, draw_png, page
from vitscale.report.figures import (
  Axis,
  Band,
  Figure,
  Level,
  Line,
  Note,
  Panel,
  Points,
  tick_labels,
)

P = np.array([1.0, 2, 4, 8, 16])
L = 0.25 + 0.03 * P**0.7


def figure(name="law", title="Loss <falls>"):
  marks = [
    Band("Fashion-MNIST", P, L * 0.98, L * 1.02),
    Line("Fashion-MNIST", P, L),
    Points("Fashion-MNIST", P, L, L * 0.97, L * 1.03),
    Points("strokes", P, [0.2, np.nan, 0.3, 0.35, 0.4], hollow=True),
    Level(0.25, "L0"),
    Note(4, 0.33, "</script><b>note"),
  ]
  left = Panel(Axis("patch size p", "log2"), Axis("loss", "log"), marks, "a")
  steps = Axis("step", "category", names=["16→8", "8→4"])
  right = Panel(steps, Axis("loss"), [Points("strokes", [0, 1], [0.3, 0.2])])
  return Figure(name, title, [left, right], caption="`p` falls", share_y=False)


class Tags(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags: list[tuple[str, dict]] = []
    self.text = ""

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("report")
  path = page.write(
    folder / "out",
    title="Patches & <scale>",
    intro="First `code` and **bold**.\n\n- one\n- two <img src=x>",
    verdicts=[
      laws.Verdict("p<1 & falls", "supported", "> 0", "0.1", control="none"),
      {
        "claim": "d",
        "verdict": "not supported",
        "threshold": "t",
        "measured": "m",
      },
    ],
    tables=[page.Table("Fits", [{"law": "<power>", "a": np.nan}])],
    figures=[figure()],
    sections=[page.Section("More", "text", figures=[figure("second")])],
    meta={"commit": "abc", "seconds": 1.25},
    data={"laws": [{"name": "power", "ci95": [np.nan, 1.0]}]},
  )
  return path, path.read_text("utf-8")


def test_page_is_offline(written):
  path, text = written
  assert path.is_absolute()
  parser = Tags()
  parser.feed(text)
  for tag, attrs in parser.tags:
    assert tag not in ("link", "iframe", "object", "embed", "base")
    for name in ("src", "href", "srcset", "data", "poster", "action"):
      value = attrs.get(name) or ""
      assert not re.match(r"(?i)\s*(\w+:)?//", value), (tag, value)
  policy = next(
    a["content"] for t, a in parser.tags if "content-security" in str(a).lower()
  )
  assert policy.startswith("default-src 'none'")
  assert "http" not in policy
  assert "@import" not in text.split("</style>")[0]
  # plotly.js once, not once per figure.
  assert text.count("* plotly.js v") == 1


def test_page_escapes(written):
  _, text = written
  parser = Tags()
  parser.feed(text)
  scripts = [a for t, a in parser.tags if t == "script"]
  # plotly, two figures, the drawing: no text broke out of its element.
  assert len(scripts) == 4
  assert sum(t == "img" for t, _ in parser.tags) == 2
  assert not any(t in ("power", "scale", "falls") for t, _ in parser.tags)
  assert "&lt;scale&gt;" in text
  badges = [
    a for t, a in parser.tags if "verdict" in a.get("class", "").split()
  ]
  kinds = [a["class"] for a in badges]
  assert kinds == ["verdict supported", "verdict not-supported"]
  for block in re.findall(r'application/json">(.*?)</script>', text):
    payload = json.loads(block)
    assert set(payload) == {"figure", "dark"}


def test_files_beside_the_page(written):
  path, _ = written
  for name in ("law", "second"):
    png = (path.parent / "figures" / f"{name}.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    pdf = (path.parent / "figures" / f"{name}.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
  assert not list(path.parent.rglob("*.part"))

  def refuse(word):
    raise AssertionError(f"{word} is not JSON")

  text = (path.parent / "report.json").read_text("utf-8")
  report = json.loads(text, parse_constant=refuse)
  assert report["laws"][0]["ci95"] == [None, 1.0]
  assert report["tables"][0]["rows"][0]["a"] is None
  assert [v["verdict"] for v in report["verdicts"]] == [
    "supported",
    "not supported",
  ]
  assert [f["png"] for f in report["figures"]] == [
    "figures/law.png",
    "figures/second.png",
  ]


def test_equal_input_equal_files(tmp_path):
  draw_png.draw(figure(), tmp_path / "a")
  draw_png.draw(figure(), tmp_path / "b")
  for end in ("png", "pdf"):
    one, two = ((tmp_path / d / f"law.{end}").read_bytes() for d in "ab")
    assert one == two


def test_plotly_accepts_the_figure():
  objects = pytest.importorskip("plotly.graph_objects")
  drawn = draw_html.draw(figure())
  objects.Figure(drawn)  # raises on any unknown or ill-typed key
  assert [t["showlegend"] for t in drawn["data"]].count(True) == 2
  assert drawn["layout"]["annotations"][-1]["text"].startswith("&lt;/script")


def test_both_renderings_agree():
  spec = figure()
  canvas = draw_png.render(spec)
  drawn = draw_html.draw(spec)
  colour = spec.colours()["Fashion-MNIST"]
  line = next(t for t in drawn["data"] if t.get("hovertemplate"))
  assert line["line"]["color"] == colour
  ax = canvas.axes[0]
  assert any(o.get_color() == colour for o in ax.get_lines())
  labels = [t.get_text() for t in ax.get_xticklabels()]
  assert (
    labels == drawn["layout"]["xaxis"]["ticktext"] == ["1", "2", "4", "8", "16"]
  )
  assert ax.get_xscale() == ax.get_yscale() == "log"
  assert drawn["layout"]["yaxis"]["ticktext"] == [
    t.get_text() for t in ax.get_yticklabels()
  ]


def test_something_is_drawn(tmp_path):
  from matplotlib import image

  blank = dataclasses.replace(figure(), name="blank")
  pixels = image.imread(draw_png.draw(blank, tmp_path)["png"])[..., :3]
  blue = np.array([0x00, 0x72, 0xB2]) / 255
  assert (np.abs(pixels - blue).max(-1) < 0.02).sum() > 500


def test_ticks_are_readable():
  log2 = Axis("p", "log2")
  assert tick_labels(log2, [1, 28])[1] == ["1", "2", "4", "8", "16"]
  assert tick_labels(Axis("p", "log2", ticks=[7, 28]), [7, 28])[1] == [
    "7",
    "28",
  ]
  assert tick_labels(Axis("n", "log2"), [1, 50176])[1][-1] == "16\u2009384"
  short = tick_labels(Axis("loss", "log"), [0.3, 0.5])[1]
  assert {"0.3", "0.4", "0.5"} <= set(short)
  assert tick_labels(Axis("flops", "log"), [1e11, 1e16]) == ([], [])
  assert tick_labels(log2, []) == ([], [])


def test_ordered_palette_and_legend():
  marks = [Line(f"p = {p:g}", [1, 2], [p, p]) for p in P]
  panel = Panel(Axis("x"), Axis("y"), marks)
  ordered = Figure("f", "t", [panel], palette="sequence")
  assert len(set(ordered.colours().values())) == 5
  assert ordered.legend == [f"p = {p:g}" for p in P]
  alone = Figure("f", "t", [Panel(Axis("x"), Axis("y"), marks[:1])])
  assert alone.legend == []
  assert ordered.colours().keys() == ordered.colours(dark=True).keys()


@pytest.mark.parametrize(
  "make, words",
  [
    (
      lambda: Figure("a/b", "t", [Panel(Axis("x"), Axis("y"), [])]),
      "file name",
    ),
    (lambda: Figure("f", "t", []), "no panels"),
    (
      lambda: Figure(
        "f", "t", [Panel(Axis("x"), Axis("y"), [Line("g", [1, 2], [1])])]
      ),
      "lengths differ",
    ),
  ],
)
def test_bad_figures(make, words):
  with pytest.raises(ValueError, match=words):
    make()


def test_two_figures_of_one_name(tmp_path):
  with pytest.raises(ValueError, match="'law'"):
    page.write(tmp_path, title="t", figures=[figure(), figure()])


def test_page_without_figures_is_small(tmp_path):
  path = page.write(tmp_path / "x.html", title="t", intro="only words")
  assert path.stat().st_size < 20_000
