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
# # One training, many models
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/04_elastic.ipynb)
#
# A nested transformer (MatFormer,
# [2310.07707](https://arxiv.org/abs/2310.07707)) holds smaller ones: the first
# eighth, quarter and half of the hidden units of every layer. Each training
# step trains one of them as the plain small model it is, so it costs what that
# model costs. Here you train one, see what its parts and mixes of them are
# worth, cut one out for a budget, let easy images leave early, and grow a model
# without losing what it has learned. Everything runs on a free CPU.

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
from vitscale.bench import build
from vitscale.core import config as config_lib
from vitscale.data import sources
from vitscale.elastic import cascade, cut, evaluate, exits
from vitscale.interop import exporter
from vitscale.report import draw_png
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.warm_start import begin

TOY = os.environ.get("VITSCALE_TOY") == "1"  # a few steps, for the tests
OUT = tempfile.mkdtemp()


def config(name, *changes):
  """A shipped config; of a few steps for the tests."""
  made = config_lib.load(f"{name},runlocal" if TOY else name)
  config_lib.override(made, list(changes))
  return made


def show(figure):
  display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))


# %% [markdown]
# ## Train one model that holds four

# %%
nested = config("vit_nested:epochs=4")
result = vs.train.train(nested, f"{OUT}/nested")
for key, value in result["metrics"].items():
  if key.startswith("eval/test/") and key.endswith("accuracy"):
    print(f"{key}: {value:.3f}")

# %% [markdown]
# ## What are its parts worth?
#
# The parts that were trained, and mixes of them over the layers that nobody
# trained: narrow first, wide later. Accuracy is on `val`; what you choose by
# it, report on `test`. And nothing is free: the ledger says what the training
# cost.

# %%
SPECS = ("ffn=1/8", "ffn=1/8,1/4", "full") if TOY else ()  # all that it knows
found = evaluate.frontier(f"{OUT}/nested", SPECS, repeats=3 if TOY else 30)
for row in found["rows"]:
  print(
    f"{row['macs'] / 1e6:7.2f} MMACs  {row['latency']:6.2f} ms"
    f"  {row['accuracy']:.3f}  {row['kind']:>7}  {row['spec']}"
  )
print(f"trained for {found['ledger']['of one whole']:.2f} of one whole model,")
print(f"{found['ledger']['of all separate']:.2f} of all sizes apart")
best = [row for row in found["rows"] if row["efficient"]]
costs = [row["macs"] for row in found["rows"]]
area = evaluate.pareto_area(
  [(row["macs"], row["accuracy"]) for row in found["rows"]],
  min(costs), max(costs),
)  # fmt: skip
print(f"area under accuracy against log MACs: {area:.3f}")

# %%
marks = [
  Points(
    kind,
    [row["macs"] / 1e6 for row in found["rows"] if row["kind"] == kind],
    [row["accuracy"] for row in found["rows"] if row["kind"] == kind],
  )
  for kind in ("trained", "mix")
  if any(row["kind"] == kind for row in found["rows"])
]
marks.append(
  Line("efficient", [row["macs"] / 1e6 for row in best],
       [row["accuracy"] for row in best])
)  # fmt: skip
show(
  Figure(
    "parts", "Parts of one nested model",
    [Panel(Axis("MMACs an image", "log2"), Axis("accuracy (val)"), marks)],
  )
)  # fmt: skip

# %% [markdown]
# ## Cut one out
#
# For a budget, by a rule (`least_slope`), by what each layer alone can spare
# (`sensitivity`), or by trying every mix (`exhaustive`, for small models). They
# look at images held out of the training set, never at the test set. What comes
# out is an ordinary run of the plain family: `vs.load` reads it, and where all
# layers are alike, `vitscale export` writes weights that timm loads.

# %%
budget = "macs:0.8"
for how in ("least_slope", "sensitivity", "exhaustive")[TOY * 2 :]:
  part = cut.cut(f"{OUT}/nested", f"{OUT}/{how}", budget=budget, how=how)
  scores = part["metrics"]["cut"]
  print(
    f"{how:>12}: {part['spec']:<24} {part['params']} parameters,"
    f" test accuracy {scores['test/accuracy']:.3f}"
    f" (scored {part['budget']['scored']} models)"
  )
small, _ = vs.load(f"{OUT}/exhaustive")
print("a plain model with hidden units", small.mlp_dim)
cut.cut(f"{OUT}/nested", f"{OUT}/half", spec="ffn=1/2")
exporter.export(f"{OUT}/half", f"{OUT}/half-timm", "timm")
print("for timm:", sorted(os.listdir(f"{OUT}/half-timm")))

# %% [markdown]
# ## Let easy images leave early
#
# Nest the depth instead, and every exit of an image comes from one pass. An
# image whose prediction is certain enough stops; the others go on. The control
# is a line: static exits, mixed at random to the same mean cost. The threshold
# is yours to choose, on other images than you report.

# %%
EXITS = ("depth=1/4", "depth=1/2", "depth=3/4", "full")[TOY * 2 :]
deep = config("vit_nested:epochs=4")
with deep.unlocked():
  deep.task = {**deep.task.to_dict(), "granularities": EXITS}
  deep.model.depth = 4
vs.train.train(deep, f"{OUT}/deep")
big = cut.open_run(f"{OUT}/deep", nested=True)
variables = {"params": big.state["ema"] or big.state["params"]}
stages = exits.by_depth(big.bench.task, big.bench.model, EXITS)
test = sources.make("fashion_mnist", split="test", limit=200 if TOY else None)
rows = test.read(np.arange(len(test)))
images, labels = rows["image"], rows["label"]
logits, _ = exits.everything(stages, variables, images, size=100)
correct = logits.argmax(-1) == labels[:, None]
price = exits.costs(stages, variables, images.shape[1:]).tried() / 1e6
print("accuracy of the exits:", np.round(correct.mean(0), 3))

# %%
doubt = cascade.entropy(logits)
points = []
for threshold in (0.02, 0.05, 0.1, 0.2, 0.4, 0.6):
  left = cascade.by_threshold(doubt, threshold)
  points.append(
    (cascade.mean_cost(price, left), cascade.accuracy(correct, left))
  )
  line = cascade.static_line(price, correct.mean(0), points[-1][0])
  print(
    f"threshold {threshold:4}: {points[-1][0]:.2f} MMACs, accuracy"
    f" {points[-1][1]:.3f}, static {float(line):.3f}"
  )
ran = cascade.run(stages, variables, images, 0.2, size=100)
print("images that each stage really ran:", ran.images)
x, y = zip(*points)
show(
  Figure(
    "exits", "Early exits",
    [Panel(Axis("MMACs an image"), Axis("accuracy (test)"),
           [Points("static exits", list(price), list(correct.mean(0))),
            Line("static, mixed", list(price), list(
              cascade.static_line(price, correct.mean(0), price))),
            Points("entropy", x, y), Line("entropy", x, y)])],
  )
)  # fmt: skip

# %% [markdown]
# ## Grow
#
# TokenFormer ([2410.23168](https://arxiv.org/abs/2410.23168)) keeps its
# weights as tokens that attention reads. New tokens with zero keys change
# nothing, if the scale under the root stays what it was, and then learn.

# %%
small = config("pattention:epochs=2,tokens=32,born=32")
vs.train.train(small, f"{OUT}/small")
large = config(
  "pattention:epochs=2,tokens=64,born=32",
  f"init.from={OUT}/small", "init.how=append",
)  # fmt: skip
bench = build(large)
x = bench.task.normalise(images[:8])
model, variables = vs.load(f"{OUT}/small")
before, _ = model.apply(variables, x)
after, _ = bench.model.apply({"params": begin(bench)["params"]}, x)
print(
  f"largest change of a logit by growing: {np.abs(before - after).max():.1e}"
)
grown = vs.train.train(large, f"{OUT}/large")
print(
  f"test accuracy {grown['metrics']['eval/test/accuracy']:.3f} after growing"
)
