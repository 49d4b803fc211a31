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
# # From pixels to latents to new images
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/06_tokenizers_and_generators.ipynb)
#
# ViTok cuts an image into tokens of c floats, E in all, and finds that E says
# how well the image comes back. We look at its published points, at what the
# best linear code could do, train a tokenizer, and then a diffusion
# transformer on its latents that makes images of a class we name.

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

from vitscale import encode, sample, train
from vitscale.core import config as config_lib
from vitscale.data import fields, sources
from vitscale.laws.published import VITOK_SWEEP, vitok_line
from vitscale.metrics import oracle
from vitscale.report import draw_png, pictures
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.tokenizer import Tokenizer

TOY = os.environ.get("VITSCALE_TOY") == "1"  # a few steps, for the tests
OUT = Path(tempfile.mkdtemp())


def show(name, image, columns=16):
  pictures.save(OUT / f"{name}.png", pictures.sheet(image, columns))
  display(Image(str(OUT / f"{name}.png"), width=640))


# %% [markdown]
# ## What was published
#
# Fifteen tokenizers, three patch sizes: PSNR against E. A straight line in
# log2 E fits well, and the largest patch lies below it.

# %%
start, slope, r2 = vitok_line("PSNR")
print(f"PSNR = {start:.2f} + {slope:.2f} dB a doubling of E, R2 {r2:.3f}")
floats = np.array([row["E"] for row in VITOK_SWEEP], float)
marks = [Line("fit", np.sort(floats), start + slope * np.log2(np.sort(floats)))]
for p in (8, 16, 32):
  mine = [row for row in VITOK_SWEEP if row["patch"] == p]
  marks.append(
    Points(f"p = {p}", [r["E"] for r in mine], [r["PSNR"] for r in mine])
  )
figure = Figure(
  "published", "ViTok's tokenizers (2501.09755, figure 3)",
  [Panel(Axis("E, floats of an image", "log2"), Axis("PSNR, dB"), marks)],
)  # fmt: skip
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# ## What the best code could do
#
# For Gaussian fields the best linear code of E floats is known. A code of
# single patches loses more: exchange between patches, attention, is what makes
# E count and not the patch.

# %%
power = fields.spectrum(32, 3.0)
for floats in (64, 256):
  best = oracle.global_residual(power, floats)
  alone = [oracle.patch_residual(power, p, floats) for p in (16, 8, 4)]
  said = ", ".join(f"{x:.4f}" for x in alone)
  print(f"E = {floats}: loses {best:.4f}; alone, p = 16, 8, 4: {said}")

# %% [markdown]
# ## A tokenizer
#
# 24 px to 36 tokens of 4 floats, in a minute or two.

# %%
config = config_lib.load(
  "vitok_fashion:runlocal" if TOY else "vitok_fashion:epochs=3"
)
result = train.train(config, OUT / "tokenizer")
print(f"PSNR of test images: {result['metrics']['eval/test/psnr']:.2f} dB")
tokenizer = Tokenizer(OUT / "tokenizer")
held_out = sources.make("fashion_mnist", split="test", size=24, limit=32)
images = held_out.images(np.arange(32))
show("originals", images)
show("reconstructions", tokenizer.decode(tokenizer.encode(images)))

# %% [markdown]
# ## Images that never were
#
# The latents become the data of a diffusion transformer. Every tenth label is
# dropped in training, so that it can be guided: away from "any image", towards
# the class.

# %%
card = encode.encode(
  OUT / "tokenizer", OUT / "latents", data=["limit=600"] if TOY else []
)
print("a channel's mean and deviation:", card["mean"][0], card["std"][0])
config = config_lib.load(
  f"dit:latents={OUT}/latents,variant=xs/1,steps=3000,batch=64,ema=0.99,"
  "lr=1e-3,dtype=float32",
  ["total_steps=2", "batch_size=8"] if TOY else [],
)
result = train.train(config, OUT / "dit")
print(f"held-out loss: {result['metrics']['eval/val/loss']:.3f}")

# %%
for guidance in (1.0, 3.0):
  folder = OUT / f"samples-{guidance:g}"
  sample.sample(
    OUT / "dit", folder, n=32, guidance=guidance,
    options={"steps": 2 if TOY else 25}, labels=["Bag", "Sneaker"],
    batch_size=32,
  )  # fmt: skip
  print(f"guidance {guidance:g}")
  with np.load(folder / "samples.npz") as made:
    show(f"guidance-{guidance:g}", made["image"])

# %% [markdown]
# Next: `vitscale study vitok` crosses patch and E with seeds and intervals,
# `vitok_oracle` asks how near to the best code a tokenizer comes, and
# `latent_generation` which c a generator wants, with guidance tuned for each.
