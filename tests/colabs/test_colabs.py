"""Notebooks: the script runs at toy size, and the .ipynb is made from it."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

COLABS = Path(__file__).parents[2] / "colabs"
SCRIPTS = sorted(COLABS.glob("*.py"))


@dataclasses.dataclass(frozen=True)
class Shows:
  """What a notebook prints, and how many images it shows."""

  words: tuple[str, ...]
  images: int


EXPECTED = {
  "01_patch_scaling": Shows(("L0 = ", "forecast for p"), 2),  # data, figure
  "02_scaling_laws": Shows(
    ("L0 = ", "refused: ", "alpha = ", "starts agree", "held-out runs are",
     "approach 3 parametric: a = ", "loss = ", "interval of the loss", "g = "),
    1,
  ),
  "03_plan_a_pod": Shows(
    ("v5p-1024: v5p:8x8x8: 512 chips", "chip-hours, bound by", "too much; ",
     "search      best of", "compiled for TPU", "collective-permute",
     "gcloud compute tpus queued-resources create"),
    2,
  ),
  "04_elastic": Shows(
    ("of one whole model", "area under accuracy", "exhaustive: ",
     "a plain model with hidden units", "accuracy of the exits: ",
     "images that each stage really ran: ", "change of a logit by growing: "),
    2,
  ),
  "05_patches_and_tokens": Shows(
    ("change of a token, PI-resized: ", "draws its patch: ", "6 px only: ",
     "rows of  256 tokens: padding ", "chunked: "),
    2,
  ),
  "06_tokenizers_and_generators": Shows(
    ("PSNR = -0.56 + 2.30 dB", "E = 64: loses 0.1073; alone, p = 16, 8, 4: "
     "0.1251, 0.1481, 0.2006", "PSNR of test images: ", "held-out loss: ",
     "guidance 3"),
    5,
  ),
  "07_your_images": Shows(
    ("data.source=folder", "Ankle boot", "best held-out loss", "L0 = ",
     "forecast for 160 images: ", "2 x 160 images: "),
    2,
  ),
  "08_weights_in_and_out": Shows(
    ("timm VisionTransformer", "probe_lr", "knn20", "shot5", "ffn=1/2",
     "and trained again: ", "largest difference of a logit: ",
     "model.stablehlo"),
    1,
  ),
}  # fmt: skip
# Half a minute to two, even as toys.
LONG = (
  "01_patch_scaling", "03_plan_a_pod", "04_elastic", "05_patches_and_tokens",
  "06_tokenizers_and_generators", "07_your_images", "08_weights_in_and_out",
)  # fmt: skip
by_name = pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)


def toy_environment() -> dict[str, str]:
  here = os.pathsep.join([str(COLABS.parent), *filter(None, sys.path)])
  return {**os.environ, "VITSCALE_TOY": "1", "PYTHONPATH": here}


def test_every_notebook_has_a_script():
  assert SCRIPTS
  names = {p.stem for p in SCRIPTS}
  assert {p.stem for p in COLABS.glob("*.ipynb")} == names == set(EXPECTED)


@pytest.mark.parametrize(
  "script",
  [
    pytest.param(p, marks=[pytest.mark.slow] if p.stem in LONG else [])
    for p in SCRIPTS
  ],
  ids=lambda p: p.stem,
)
def test_script_runs(script, tmp_path):
  pytest.importorskip("IPython", reason="needs the extra [notebooks]")
  process = subprocess.run(
    [sys.executable, str(script)],
    capture_output=True, text=True, timeout=900, cwd=tmp_path,
    env=toy_environment(),
  )  # fmt: skip
  assert process.returncode == 0, process.stderr[-3000:]
  for words in EXPECTED[script.stem].words:
    assert words in process.stdout, words
  assert not list(tmp_path.iterdir())  # it leaves the user's folder alone


@by_name
def test_notebook_is_made_from_the_script(script):
  jupytext = pytest.importorskip("jupytext", reason="extra [notebooks]")
  made = jupytext.read(script)
  kept = jupytext.read(script.with_suffix(".ipynb"))
  cells = lambda book: [(c.cell_type, c.source) for c in book.cells]
  assert cells(made) == cells(kept), "run `make colabs`"
  assert all(not c.get("outputs") for c in kept.cells)


@by_name
def test_title_links_to_this_notebook(script):
  text = script.read_text()
  link = f"/blob/main/colabs/{script.stem}.ipynb"
  assert link in text and "[![Open in Colab]" in text
  assert "git+https://" in text


@pytest.mark.slow
@by_name
def test_notebook_runs(script, tmp_path):
  for package in ("nbconvert", "ipykernel", "nbformat"):
    if importlib.util.find_spec(package) is None:
      pytest.skip(f"{package} is not installed (extra [notebooks])")
  book = script.with_suffix(".ipynb")
  process = subprocess.run(
    [
      sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook",
      "--output-dir", str(tmp_path), str(book),
    ],
    capture_output=True, text=True, timeout=900, cwd=tmp_path,
    env=toy_environment(),
  )  # fmt: skip
  assert process.returncode == 0, process.stderr[-3000:]
  import nbformat

  done = nbformat.read(tmp_path / book.name, as_version=4)
  shown = [
    kind
    for cell in done.cells
    for output in cell.get("outputs", ())
    for kind in output.get("data", ())
  ]
  assert shown.count("image/png") == EXPECTED[script.stem].images
