# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images, to a fitted law
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/07_your_images.ipynb)
#
# You have some thousand labelled images. Would twice as many help, and by how
# much? We look at a folder, train one small ViT on a sixteenth to a half of
# it, fit `L = L0 + c n^a` with intervals, and forecast what all of it
# gives: then train that too and see whether the forecast holds. Only then it is
# worth asking about images that nobody has taken yet.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vitscale") is None:
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  url = "vitscale[notebooks] @ git+https://github.com/OWNER/vitscale"
  subprocess.run([*pip, url], check=True)

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Image, display

import vitscale as vs
from vitscale.core import config as config_lib
from vitscale.data import pixels, show, sources
from vitscale.report import draw_png
from vitscale.report.figures import Axis, Band, Figure, Line, Panel, Points
from vitscale.workdir import curve

TOY = os.environ.get("VITSCALE_TOY") == "1"  # a few steps, for the tests
OUT = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The images
#
# `FOLDER/CLASS/*.jpg` or `FOLDER/train/CLASS/*.jpg`; on Colab upload a zip and
# unpack it, or mount a drive. Without one we write some of Fashion-MNIST as
# files, so that what follows has a folder to read. Tables of labels, Parquet,
# WebDataset and others are read alike: `DATA = {"source": "table", ...}`.

# %%
FOLDER = None  # "/content/photos"
SIZE, PATCH = 28, 7  # pixels a side, as the model sees them
CHANNELS = 1 if FOLDER is None else 3  # grey, or colours

if FOLDER is None:
  FOLDER, some = OUT / "photos", sources.make("fashion_mnist")
  rows = np.arange(200 if TOY else len(some))
  for i, image in zip(rows, some.read(rows)["image"]):
    name = some.class_names[some.label[i]].replace("/", " or ")
    (FOLDER / name).mkdir(parents=True, exist_ok=True)
    pixels.to_pil(image).save(FOLDER / name / f"{i:05}.png")
DATA = {
  "source": "folder", "path": str(FOLDER), "val": 0.2, "channels": CHANNELS,
}  # fmt: skip

# %%
parts = show.splits(DATA)
print(show.text(show.describe(DATA, parts)))
show.sheet(parts, OUT / "sheet.png")
display(Image(str(OUT / "sheet.png"), width=640))

# %% [markdown]
# The held-out fifth is the same in every run, however few images it trains on.
# In a terminal all of this is `vitscale data photos --sheet sheet.png`, and
# `vitscale data convert photos --out records` makes record files of it, which
# are read faster.

# %% [markdown]
# ## The runs
#
# The same number of steps for each. With few images that is many passes, and a
# model that knows them by heart has a bad loss on others: so we note the best
# held-out loss of ten looks. That is a choice made on `val`, as early stopping
# is, and the same one everywhere.

# %%
SEEDS = (0, 1)
ALL = len(parts["train"])
STEPS = 8 if TOY else 1500

base = config_lib.load(
  f"vit_folder:path={FOLDER},variant=mu/{PATCH},size={SIZE}"
)
with base.unlocked():
  base.data = DATA | {"limit": ALL}
  base.law_variables = {"n": ALL}  # what a law may be over, besides the usual
  base.batch_size = 32
  del base["total_epochs"]
  base.total_steps = STEPS
  base.train.transform = f"resize({SIZE})|flip_lr"
  base.model.update({"width": 64, "mlp_dim": 256, "num_heads": 2})
  base.evals.val.update({
    "transform": f"resize({SIZE})", "batch_size": 500, "data": {"limit": 10**9},
  })  # fmt: skip


def train(counts):
  """A row per number of images and seed."""
  rows = []
  sizes = {"data.limit": counts, "law_variables.n": counts}
  for point in vs.sweep.product(vs.sweep.zip_(sizes), seed=SEEDS):
    n, seed = point["data.limit"], point["seed"]
    workdir = OUT / "runs" / f"n{n}-s{seed}"
    vs.train.train(vs.sweep.apply(base, point), str(workdir))
    best = min(curve(workdir, "eval/val/nll")["eval/val/nll"])
    rows.append({"n": n, "seed": seed, "loss": best})
    print(f"{n:6} images  seed {seed}  best held-out loss {best:.3f}")
  return rows


FEW = [ALL // k for k in (16, 8, 4, 2)]
table = train(FEW)

# %% [markdown]
# ## The law, and its test
#
# Intervals come from resampling the runs. The forecast for all images is made
# before they are trained on.

# %%
law = vs.laws.power_constant("n", exponent=(-2, 0))
fit = vs.laws.fit(law, table)
for name, (low, high) in fit.ci().items():
  print(f"{name:>2} = {fit.params[name]:.3f}  [{low:.3f}, {high:.3f}]")
for warning in fit.warnings:
  print("note:", warning)
low, high = fit.predict_ci(n=ALL, runs=len(SEEDS))
print(f"forecast for {ALL} images: {fit.predict(n=ALL):.3f}", end=" ")
print(f"[{low:.3f}, {high:.3f}]")
unseen = train([ALL])
came = np.mean([row["loss"] for row in unseen])
print(f"came {came:.3f}:", "inside" if low <= came <= high else "outside")

# %% [markdown]
# ## What would more images give?
#
# All runs together now. If the forecast failed above, this one deserves no
# trust either; the interval is of this law only, and widens as it should.

# %%
whole = vs.laws.fit(law, table + unseen)
for times in (2, 4):
  low, high = whole.predict_ci(n=times * ALL, runs=len(SEEDS))
  guess = whole.predict(n=times * ALL)
  print(f"{times} x {ALL} images: {guess:.3f} [{low:.3f}, {high:.3f}]")

# %%
n = np.geomspace(min(FEW), 4 * ALL, 100)
column = lambda rows, key: [row[key] for row in rows]
figure = Figure(
  "images", "Held-out loss against the number of training images",
  [
    Panel(
      Axis("training images", "log2"), Axis("best held-out loss (nats)"),
      [
        Band("all runs", n, *whole.predict_ci(n=n)),
        Line("all runs", n, whole.predict(n=n)),
        Points("fitted first", column(table, "n"), column(table, "loss")),
        Points("forecast first", column(unseen, "n"), column(unseen, "loss")),
      ],
    )
  ],
)  # fmt: skip
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# When we ran this on Fashion-MNIST (6 minutes on two busy cores), the forecast
# for 8,000 images was 0.611 [0.537, 0.673] and 0.623 came; twice as many are
# said to give 0.603 [0.557, 0.645], which is hardly worth taking them.
#
# The same runs as a page with curves and configs, and the law of their last
# losses, in a terminal:

# %%
for command in (
  f"runs {OUT}/runs --page {OUT}/runs.html",
  f"fit {OUT}/runs --law 'L0 + c/n^a' --map loss=eval/val/nll",
):
  print(f"vitscale {command}")

# %% [markdown]
# Larger images and models: `vitscale train vit_folder:path=photos`, or start
# from weights that know photographs already, in
# [08](08_weights_in_and_out.ipynb).
