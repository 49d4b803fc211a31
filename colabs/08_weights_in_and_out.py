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
# # A checkpoint comes in, a smaller one goes out
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/08_weights_in_and_out.ipynb)
#
# Weights of timm, Hugging Face or big_vision become a run like any other: it
# can be scored, fine-tuned, cut to a budget and written out again, for timm,
# for Hugging Face, or as a StableHLO program that needs none of the three.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vitscale") is None:
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  url = "vitscale[notebooks,export] @ git+https://github.com/OWNER/vitscale"
  subprocess.run([*pip, url], check=True)

# %%
import os
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Image, display

import vitscale as vs
from vitscale import evaluate, workdir
from vitscale.core import config as config_lib
from vitscale.data import sources
from vitscale.elastic import cut
from vitscale.interop import exporter, importer
from vitscale.parent import Parent
from vitscale.report import draw_png
from vitscale.report.figures import Axis, Figure, Panel, Points

TOY = os.environ.get("VITSCALE_TOY") == "1"  # a few steps, for the tests
OUT = Path(tempfile.mkdtemp())
DATA = ("data.source=fashion_mnist", *(["data.limit=200"] if TOY else []))

# %% [markdown]
# ## Somebody's checkpoint
#
# Any `model.safetensors` with its config.json, of a ViT, DeiT, DINOv2, SigLIP
# or MAE, from timm or Hugging Face, or a big_vision npz. For example
#
# ```
# from huggingface_hub import snapshot_download
# CHECKPOINT = snapshot_download("facebook/dinov2-small")
# ```
#
# Such a model wants colour images of its own size (say where: DATA =
# ("data.source=folder", "data.path=DIR")), a run of its own kind where we train
# again below, and minutes for thousands of images on a CPU. So that this runs
# anywhere, we make a small one: trained here, then
# written as timm stores it, and from there on treated as a stranger's.

# %%
CHECKPOINT = None

if CHECKPOINT is None:
  config = config_lib.load("vit_fashion:runlocal" if TOY else "vit_fashion")
  with config.unlocked():  # as Hugging Face's classifiers have it
    config.model.pool = "cls"
  vs.train.train(config, OUT / "author")
  CHECKPOINT = OUT / "somebody"
  exporter.export(OUT / "author", CHECKPOINT, "timm")
for file in sorted(Path(CHECKPOINT).iterdir()):
  print(f"{file.stat().st_size:9} bytes  {file.name}")

# %% [markdown]
# ## In
#
# The layout is told from the names. Names and shapes must match one to one, and
# what has no place is listed. Another `patch=` or `size=` resizes kernels and
# positions on the way. In a terminal:
# `vitscale import CHECKPOINT --out run data.source=folder data.path=photos`.

# %%
found = importer.bring(CHECKPOINT, OUT / "run", overrides=DATA)
print(importer.text(found))

# %% [markdown]
# ## What do its features know?
#
# As they are, without training: nearest neighbours, a linear map in closed
# form, one by stochastic gradient descent, a few images of each class. And the
# head it came with, on images of another size and with other patches.

# %%
PROBES = (
  "classify, knn(k=20), linear_probe(solver='ridge'), few_shot(shots=(1, 5))"
)


def scored(run, evals=PROBES):
  """Prints how `evals` of test images come out."""
  result = evaluate.evaluate(run, evals, split="test", batch_size=500)
  print(evaluate.text(result))


scored(OUT / "run")
scored(OUT / "run", "linear_probe(solver='sgd', lr=0.1, epochs=20)")
scored(OUT / "run", "robustness(size=(21, 35))")

# %% [markdown]
# ## Smaller
#
# Nobody trained this model to have parts, so its hidden units and heads are
# ranked first: by how much the training loss would change without each, to
# first order. Then the best ones are cut out, as many as you say. Every part is
# a run like any other, and its scores come with it.

# %%
SPECS = ("ffn=1/2", "heads=1/2") if TOY else (
  "ffn=1/4", "ffn=1/2", "ffn=3/4", "heads=1/2", "ffn=1/2 heads=1/2",
)  # fmt: skip
rows = []
for i, spec in enumerate(SPECS):
  part = cut.cut(OUT / "run", OUT / f"part{i}", spec=spec, by="importance")
  score = part["metrics"]["cut"]["val/accuracy"]
  rows.append({"params": part["params"], "accuracy": score})
  print(f"{spec:<18} {part['params']:7} parameters  val accuracy {score:.3f}")

# %% [markdown]
# Cut without a word, a model loses. A little training, an ordinary run that
# starts from the cut one, gives some of it back.

# %%
config = config_lib.load(
  "vit_fashion:runlocal" if TOY else "vit_fashion:epochs=3"
)
with config.unlocked():
  config.model = dict(Parent(OUT / "part0").config["model"])
  config.init = {"from": str(OUT / "part0")}
  config.optim.lr = 3e-4
tuned = vs.train.train(config, OUT / "tuned")
score = tuned["metrics"]["eval/val/accuracy"]
print(f"{SPECS[0]} and trained again: val accuracy {score:.3f}")

# %%
whole = {
  "params": found["params"], "accuracy": part["metrics"]["full"]["val/accuracy"]
}  # fmt: skip
column = lambda rows, key: [row[key] for row in rows]
figure = Figure(
  "parts", "What is left of a model after cutting",
  [
    Panel(
      Axis("parameters", "log2"), Axis("accuracy (val)"),
      [
        Points("as it came", [whole["params"]], [whole["accuracy"]]),
        Points("cut", column(rows, "params"), column(rows, "accuracy")),
        Points("cut, trained", [rows[0]["params"]], [score]),
      ],
    )
  ],
)  # fmt: skip
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# ## Out
#
# For timm (`timm.create_model("local-dir:DIR", pretrained=True)`), for Hugging
# Face (`AutoModelForImageClassification.from_pretrained(DIR)`), and as a
# program: weights, any batch size, normalisation inside.

# %%
for to in ("timm", "hf", "stablehlo"):
  print(exporter.text(exporter.export(OUT / "tuned", OUT / to, to)))

# %% [markdown]
# The program runs in a process that can't import vitscale, and says the same.

# %%
test = sources.make("fashion_mnist", split="test", limit=200)
shown = test.read(np.arange(200))
np.save(OUT / "images.npy", shown["image"])
ALONE = """
import sys
sys.modules["vitscale"] = None  # an import of it fails
import jax.export, numpy as np
run = jax.export.deserialize(open("model.stablehlo", "rb").read()).call
np.save("logits.npy", run(dict(np.load("weights.npz")), np.load(sys.argv[1])))
"""
subprocess.run(
  [sys.executable, "-c", ALONE, str(OUT / "images.npy")],
  cwd=OUT / "stablehlo", check=True,
)  # fmt: skip
theirs = np.load(OUT / "stablehlo" / "logits.npy")
bench, variables, _ = workdir.restored(OUT / "tuned")
ours, _ = bench.model.apply(variables, bench.task.normalise(shown["image"]))
print(f"largest difference of a logit: {np.abs(theirs - ours).max():.1e}")
print(f"accuracy: {(theirs.argmax(1) == shown['label']).mean():.3f}")

# %% [markdown]
# Next: fine-tune on your own images with `configs/vit_finetune.py`, of all
# weights, of low-rank pairs (`lora=8`), or at another size; or make a model
# that was trained to be cut, in [04](04_elastic.ipynb).
