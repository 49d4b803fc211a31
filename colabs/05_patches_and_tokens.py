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
# # One model at every patch size, and what more tokens cost
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/05_patches_and_tokens.ipynb)
#
# A patch is a linear map of pixels, so its kernel can be resized exactly
# (FlexiViT). We train one ViT that draws its patch every step, read its
# accuracy at every patch, pack images of any shape into rows of tokens, and
# look at what attention costs as the tokens become pixels.

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

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image, display
from ml_collections import ConfigDict

import vitscale as vs
from vitscale import train
from vitscale.core import axes
from vitscale.data import pack, sources
from vitscale.models import vit
from vitscale.nn import patch
from vitscale.report import draw_png
from vitscale.report.figures import Axis, Figure, Line, Panel, Points

TOY = os.environ.get("VITSCALE_TOY") == "1"  # a few steps, for the tests
OUT = Path(tempfile.mkdtemp())
STEPS = 60 if TOY else 3000
PATCHES = (12, 6, 4, 3, 2)

# %% [markdown]
# ## A kernel at another size
#
# Enlarge a patch bilinearly and its pixels change; the pseudo-inverse of that
# resize, applied to the kernel, keeps every inner product. Resized naively, the
# same model would read something else.

# %%
rng = np.random.default_rng(0)
x, w = rng.normal(size=(6, 6)), rng.normal(size=(36, 4)).astype("f4")
up = patch.resize_matrix(6, 12)
large = (up @ x @ up.T).reshape(-1)
kept = large @ np.asarray(patch.resize_kernel(w, 6, 12))
naive = large @ np.asarray(
  jax.image.resize(w.reshape(6, 6, 4), (12, 12, 4), "bilinear")
).reshape(144, 4)
print("change of a token, PI-resized:", abs(kept - x.reshape(-1) @ w).max())
print("change of a token, naively:   ", abs(naive - x.reshape(-1) @ w).max())

# %% [markdown]
# ## One training, every patch
#
# `draws` names what a step samples, from a fixed list: one compiled step for
# each value, chosen from the seed and the step's number alone. With `stages`
# instead of `weights` it is a curriculum, from large patches to small ones.


# %%
def config(**more):
  """A small ViT on Fashion-MNIST at 12 px."""
  return ConfigDict(
    {
      "seed": 0, "batch_size": 32, "total_steps": STEPS,
      "data": {"source": "fashion_mnist", "size": 12},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "variant": "mu", "patch_size": 6,
        "position": "sincos2d", "mlp_dim": 128,
      },
      "task": {"name": "classify"},
      "optim": {
        "name": "adamw", "lr": 6e-3,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      **more,
    }
  )  # fmt: skip


flexible = train.train(
  config(draws={"patch_size": {"values": PATCHES}}), OUT / "flexible"
)
fixed = train.train(config(), OUT / "fixed")

# %%
held_out = sources.make("fashion_mnist", split="test", size=12, limit=2000)
images = held_out.read(np.arange(len(held_out)))["image"]
mean, std = np.array(held_out.mean) * 255, np.array(held_out.std) * 255
images = ((images - mean) / std).astype("f4")


def accuracy(workdir, size):
  model, variables = vs.load(workdir)
  run = jax.jit(lambda v, x: model.apply(v, x, patch_size=size)[0].argmax(-1))
  return float((run(variables, images) == held_out.label).mean())


marks = []
for name, result in (("draws its patch", flexible), ("6 px only", fixed)):
  scores = [accuracy(result["workdir"], p) for p in PATCHES]
  print(f"{name}: " + ", ".join(f"{s:.3f}" for s in scores))
  marks += [Points(name, PATCHES, scores), Line(name, PATCHES, scores)]
axis = Axis("patch at test time", "log2", ticks=np.array(PATCHES[::-1], float))
figure = Figure(
  "flexible", "One model at every patch",
  [Panel(axis, Axis("test accuracy"), marks)],
)  # fmt: skip
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# ## Images of any shape in one row
#
# Real photographs are not square. Rows of a fixed number of tokens hold several
# images each, `segment_ids` keep them apart, and the plan is known before the
# run: with it the padding.

# %%
aspect, scale = 0.35 * rng.normal(size=20_000), 0.4 * rng.normal(size=20_000)
sides = np.stack([scale + aspect / 2, scale - aspect / 2], 1)
sizes = np.maximum(np.rint(200 * np.exp(sides)), 16).astype(int)
for length in (256, 512, 1024):
  grids = pack.grids_of(sizes, 16, length)
  kinds, counts = np.unique(grids.prod(1), return_counts=True)
  rows = pack.best_fit(dict(zip(kinds.tolist(), counts.tolist())), length, 16)
  tokens = grids.prod(1).sum()
  waste = 1 - tokens / (length * sum(n for _, n in rows))
  print(f"rows of {length:>4} tokens: padding {waste:.2%}")

# %% [markdown]
# ## What do tokens cost?
#
# The memory of a training step on patches of 1 x 1, as the compiler plans it.
# Stored logits are square in the number of tokens; blocks of keys are not.


# %%
def step_memory(side, attention):
  """MB of a training step on side x side pixels."""
  model = vit.Model(
    10, width=64, depth=2, mlp_dim=128, num_heads=1, patch_size=1,
    position="sincos2d", attention=attention,
  )  # fmt: skip
  image = jax.ShapeDtypeStruct((1, side, side, 1), jnp.float32)
  v = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  loss = lambda v, x: jnp.square(model.apply(v, x, train=True)[0]).sum()
  compiled = jax.jit(jax.grad(loss)).lower(v, image).compile()
  return compiled.memory_analysis().temp_size_in_bytes / 1e6


across = (16, 32, 64) if TOY else (16, 32, 64, 128)
marks = []
for name in ("reference", "chunked"):
  used = [step_memory(side, name) for side in across]
  print(f"{name}: " + ", ".join(f"{m:.0f} MB" for m in used))
  tokens = [side * side for side in across]
  marks += [Points(name, tokens, used), Line(name, tokens, used)]
figure = Figure(
  "memory", "Memory of a step on pixels",
  [Panel(Axis("tokens", "log"), Axis("MB", "log"), marks)],
)  # fmt: skip
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# Next: `vitscale study flexible_patch`, `mixers` and `long_sequence` ask these
# questions with seeds and intervals, and `vitscale plan
# vit_pod:variant=B/1,size=512,batch=32,fsdp=32 --topology v5p:2x4x4` says what
# 262,144 tokens take on a pod.
