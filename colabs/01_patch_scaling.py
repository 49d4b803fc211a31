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
# # Smaller patches, lower loss: a patch-size law in a few minutes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/01_patch_scaling.ipynb)
#
# A vision transformer cuts an image into patches of `p x p` pixels, one token
# each. Wang et al. ([2502.03738](https://arxiv.org/abs/2502.03738)) shrink `p`
# down to a single pixel and see the test loss fall all the way, about as
#
# $$L(p) = L_0 + c\,p^a$$
#
# Here you train a few patch sizes, fit that curve with intervals, forecast the
# next patch and check. Everything runs on a free CPU.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vitscale") is None:
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  url = "git+https://github.com/OWNER/vitscale"
  subprocess.run([*pip, url], check=True)

# %%
import os
import tempfile

import numpy as np
from IPython.display import Image, display

import vitscale as vs
from vitscale.core import config as config_lib
from vitscale.data import pixels, sources
from vitscale.report import draw_png
from vitscale.report.figures import Axis, Band, Figure, Line, Panel, Points

TOY = os.environ.get("VITSCALE_TOY") == "1"  # a few steps, for the tests
OUT = tempfile.mkdtemp()

# %% [markdown]
# ## The images
#
# Six short strokes, one pixel wide, on noise; the label is the orientation
# that most of them have: 0, 45, 90 or 135 degrees. What tells the classes apart
# is two pixels wide, so a patch as large as the image has to untangle
# everything in one linear map, and a small one does not.

# %%
DATA = {"source": "strokes", "size": 12, "n": 2_000 if TOY else 50_000}

source = sources.make(DATA["source"], size=12, n=64)
shown = [np.flatnonzero(source.label == c)[:6] for c in range(source.classes)]
rows = [np.hstack(source.read(i)["image"][..., 0]) for i in shown]
sheet = np.kron(np.vstack(rows), np.ones((6, 6), np.uint8))[..., None]
print("one row per class:", ", ".join(source.class_names))
display(pixels.to_pil(sheet))

# %% [markdown]
# ## The runs
#
# One config, changed in two places per run: patch and seed. Learning rates
# were tuned beforehand for each patch (`vitscale study patchify --scale tune`);
# with one rate for all, or too few steps, small patches look *worse* than they
# are, since they learn more slowly.

# %%
PATCHES, NEXT = ((12, 6, 4), 3) if TOY else ((12, 6, 4, 3), 2)
SEEDS = (0, 1)
RATES = {12: 3e-3, 6: 6e-3, 4: 6e-3, 3: 6e-3, 2: 6e-3}

base = config_lib.load("vit_fashion:size=12,width=32,depth=2")
with base.unlocked():
  base.data = dict(DATA)
  base.train.transform = ""
  base.batch_size = 32
  del base["total_epochs"]
  base.total_steps = 8 if TOY else 3000
  base.model.update({"mlp_dim": 128, "num_heads": 1})
  base.evals = {"test": {"split": "test", "batch_size": 500}}
  base.evals.test.data = {"n": 500 if TOY else 4_000}


def train(patches):
  """A row per patch and seed."""
  rates = [RATES[p] for p in patches]
  both = {"model.patch_size": patches, "optim.lr": rates}
  rows = []
  for point in vs.sweep.product(vs.sweep.zip_(both), seed=SEEDS):
    p, seed = point["model.patch_size"], point["seed"]
    config = vs.sweep.apply(base, point)
    result = vs.train.train(config, f"{OUT}/runs/p{p}-s{seed}")
    loss = result["metrics"]["eval/test/nll"]
    rows.append({"p": p, "seed": seed, "loss": loss})
    tokens = (DATA["size"] // p) ** 2
    print(f"patch {p:2}  {tokens:3} tokens  seed {seed}  test loss {loss:.3f}")
  return rows


table = train(PATCHES)

# %% [markdown]
# ## The law
#
# `vs.laws.fit` finds `L0`, `c` and `a`, and resamples the runs for intervals.
# It says so when the data do not pin the curve down.

# %%
fit = vs.laws.fit(vs.laws.power_constant("p", exponent=(0, 4)), table)
for name, (low, high) in fit.ci().items():
  print(f"{name:>2} = {fit.params[name]:.3f}  [{low:.3f}, {high:.3f}]")
for warning in fit.warnings:
  print("note:", warning)

# %% [markdown]
# ## One patch further
#
# First the forecast for a patch that the fit has not seen, with the noise of as
# many runs as we are about to make; then the runs.

# %%
low, high = fit.predict_ci(p=NEXT, runs=len(SEEDS))
print(f"forecast for p = {NEXT}: {fit.predict(p=NEXT):.3f}", end=" ")
print(f"[{low:.3f}, {high:.3f}]")
unseen = train((NEXT,))

# %%
p = np.geomspace(NEXT, max(PATCHES), 100)
column = lambda rows, key: [row[key] for row in rows]
means = lambda rows, patches: [
  np.mean([r["loss"] for r in rows if r["p"] == q]) for q in patches
]
figure = Figure(
  "law",
  "Test loss against patch size",
  [
    Panel(
      Axis("patch size p (pixels)", "log2", ticks=(NEXT, *PATCHES)),
      Axis("test loss (nats)"),
      [
        Band("fitted", p, *fit.predict_ci(p=p)),
        Line("fitted", p, fit.predict(p=p)),
        Points("fitted", column(table, "p"), column(table, "loss"), faint=True),
        Points("fitted", PATCHES, means(table, PATCHES)),
        Points("not seen by the fit", (NEXT,), means(unseen, (NEXT,))),
      ],
    )
  ],
)
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# ## And now properly
#
# When we ran this (4 CPU minutes, two cores), the fit gave `a` = 1.98 [1.88,
# 2.09] and a forecast of 0.390 [0.379, 0.399], and the runs came out at 0.459:
# the law failed its test. That has two readings: 3,000 steps are too few for
# 36 tokens, or the curve bends. And where it holds: is it the smaller patch, or
# only the longer sequence? Two seeds on one data set can't tell. The study asks
# with controls, more seeds, half-length runs and thresholds set beforehand, on
# Fashion-MNIST too:
#
# ```
# vitscale study patchify --scale quick     # ten minutes on two cores
# ```
#
# `vs.runs(folder)` lists its runs; `vs.load(workdir)` gives a trained model
# back.
