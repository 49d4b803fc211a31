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
# # Scaling laws that say what they don't know
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/02_scaling_laws.ipynb)
#
# From a table of runs (size, data, loss) to the size of your next model, with
# an interval on every number. The runs here are simulated from a law we know,
# so you can see each answer beside the truth. Nothing is trained, nothing
# downloaded; a CPU does it in a minute.

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

from vitscale import laws
from vitscale.laws import expression
from vitscale.report import draw_png
from vitscale.report.figures import Axis, Band, Figure, Line, Panel, Points

TOY = os.environ.get("VITSCALE_TOY") == "1"  # fewer draws, for the tests
DRAWS = 300 if TOY else 4000
OUT = tempfile.mkdtemp()

# %% [markdown]
# ## The runs
#
# Six budgets, seven sizes each, and what is left of a budget is spent on
# tokens: `C = 6 N D`. The losses follow Chinchilla's law with 0.5 % of noise
# from run to run.

# %%
TRUTH = {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}
law = laws.chinchilla()
print(law.formula)


def train(size, tokens, seed=0):
  """What a cluster would have told us."""
  noise = np.random.default_rng(seed).standard_normal(np.shape(size))
  return law(TRUTH, N=size, D=tokens) * np.exp(0.005 * noise)


budgets = np.geomspace(6e18, 6e20, 6)
compute = np.repeat(budgets, 7)
tokens_each = np.tile(np.geomspace(3, 300, 7), 6)  # tokens a parameter
N = np.sqrt(compute / 6 / tokens_each)
D = N * tokens_each
runs = {"N": N, "D": D, "C": compute, "loss": train(N, D)}

# %% [markdown]
# Your own runs fit in as a dict of columns, a data frame, or a list of rows. In
# a terminal it is one line, for CSV, JSON, parquet, TensorBoard or W&B:
#
# ```
# vitscale fit runs.csv --law chinchilla --map N=params D=tokens
# ```

# %% [markdown]
# ## One axis: a power and a floor
#
# A single model on more and more tokens, three seeds: `L = L0 + c D^a`. The
# floor is what no amount of data removes: here the truth is
# `E + A / N^alpha`.

# %%
size = 3e8
few = np.repeat(np.geomspace(3e8, 3e11, 8), 3)
sweep = {"D": few, "loss": train(np.full_like(few, size), few, seed=1)}
line = laws.fit(
  laws.power_constant("D", exponent=(-2, 0)), sweep, bootstrap=DRAWS
)
floor = TRUTH["E"] + TRUTH["A"] / size ** TRUTH["alpha"]
low, high = line.ci()["L0"]
found = line.params["L0"]
print(f"L0 = {found:.3f} [{low:.3f}, {high:.3f}], truth {floor:.3f}")

# %% [markdown]
# ## A fit that is refused
#
# The same model, but only a factor of two in tokens. A curve still goes through
# the points, and a careless tool would print a floor. Here it is called
# degenerate, and it gets no intervals.

# %%
narrow = np.repeat(np.geomspace(1e11, 2e11, 4), 3)
short = {"D": narrow, "loss": train(np.full_like(narrow, size), narrow, seed=3)}
refused = laws.fit(
  laws.power_constant("D", exponent=(-2, 0)), short, bootstrap=DRAWS
)
for reason in refused.degenerate:
  print("refused:", reason)
print("L0 =", refused.ci()["L0"])

# %% [markdown]
# ## Two axes: Chinchilla's law
#
# All 42 runs at once, with Hoffmann's robust objective. `agree` is the share of
# starts that found the same optimum: a fit you can't repeat is no fit.

# %%
fit = laws.fit(law, runs, objective="huber:1e-3", bootstrap=DRAWS)
for name, (low, high) in fit.ci().items():
  here, true = fit.params[name], TRUTH[name]
  print(f"{name:>5} = {here:8.4g} [{low:.4g}, {high:.4g}], truth {true:g}")
print(f"{fit.search['agree']:.0%} of the starts agree")
for warning in fit.warnings:
  print("note:", warning)

# %% [markdown]
# ## Does it extrapolate?
#
# The only test that a law can't pass by flexibility: fit without the largest
# budget, predict it, look. The interval holds the curve's doubt and the noise
# of one run.

# %%
near = compute < 0.9 * compute.max()
small = laws.fit(
  law, {k: v[near] for k, v in runs.items()}, objective="huber:1e-3",
  bootstrap=DRAWS,
)  # fmt: skip
low, high = small.predict_ci(N=N[~near], D=D[~near], runs=1)
inside = (low <= runs["loss"][~near]) & (runs["loss"][~near] <= high)
print(f"forecast: {inside.sum()} of {inside.size} held-out runs are inside")

# %% [markdown]
# ## Three ways to the best size
#
# Hoffmann et al. asked the question three times: the envelope of all runs (1),
# a parabola per budget (2), and the law (3). `a` says how the best size grows,
# `N* ~ C^a`. They share the runs but not the assumptions, so look whether they
# agree. Approach 1 wants whole training curves: from end points alone it says
# little, and says so.

# %%
three = laws.approaches(runs, bootstrap=DRAWS // 2)
a = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
for answer in three.answers:
  low, high = answer.a_ci
  said = answer.reason or f"a = {answer.a:.3f} [{low:.3f}, {high:.3f}]"
  print(f"approach {answer.name}: {said}")
print(f"truth {a:.3f}; do they agree within {three.margin}? {three.agree}")

# %% [markdown]
# ## What should a budget buy?
#
# Ten times our largest budget. Mind how wide the interval of `N` is, and how
# narrow that of the loss: the valley is flat, so a size that is a bit off costs
# little.

# %%
budget = 6e21
best = laws.allocate(fit, budget)
for name, digits in (("n", ".3g"), ("d", ".3g"), ("loss", ".4f")):
  low, high = best.ci[name]
  value = getattr(best, name)
  print(f"{name:>4} = {value:{digits}} [{low:{digits}}, {high:{digits}}]")
print("inside of the sizes we trained:", best.inside)

# %%
groups = [f"{c:.2g}" for c in budgets]
marks = []
for c, group in zip(budgets, groups):
  mine = compute == c
  grid = np.geomspace(N[mine].min(), N[mine].max(), 60)
  marks.append(Points(group, N[mine], runs["loss"][mine]))
  marks.append(Line(group, grid, fit.predict(N=grid, D=c / 6 / grid)))
valleys = Panel(Axis("parameters N", "log"), Axis("loss (nats)"), marks)

ahead = np.geomspace(6e18, 6e22, 25)
optima = [laws.allocate(fit, c) for c in ahead]
frontier = Panel(
  Axis("compute C (FLOP)", "log"),
  Axis("best N", "log"),
  [
    Band("N*", ahead, *np.transpose([o.ci["n"] for o in optima])),
    Line("N*", ahead, [o.n for o in optima]),
  ],
)
figure = Figure(
  "laws", "Six budgets and what follows", [valleys, frontier],
  palette="sequence",
)  # fmt: skip
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# ## Which runs next?
#
# You want the loss at that budget, and can afford a twentieth of it for more
# small runs. Not every run teaches the same: this plan picks those that narrow
# the forecast most, at the level of the law (it does not doubt the law itself).

# %%
plan = laws.next_runs(
  fit, {"N": best.n, "D": best.d}, budget=budget / 20, count=3
)
for run in plan.runs:
  print(f"N = {run['N']:.2g}, D = {run['D']:.2g}, C = {run['C']:.2g}")
print(f"interval of the loss: {plan.before:.4f} now, {plan.after:.4f} then")
for warning in plan.warnings:
  print("note:", warning)

# %% [markdown]
# ## A law of your own
#
# Any formula over your columns. Names that are no columns are parameters; those
# that multiply a whole term are solved exactly. Here is a rival: one exponent
# for both.

# %%
rival = laws.fit(
  expression.law("E + A / N^g + B / D^g", ("N", "D")), runs,
  objective="huber:1e-3", bootstrap=DRAWS,
)  # fmt: skip
low, high = rival.ci()["g"]
print(f"g = {rival.params['g']:.3f} [{low:.3f}, {high:.3f}]")
print(f"objective {rival.objective:.4g}, two exponents {fit.objective:.4g}")

# %% [markdown]
# ## On real points
#
# * `vitscale study chinchilla --data FILE`: Hoffmann's points again, the optima
#   to nine digits, and why the printed parameters don't fit.
# * `vitscale study extrapolation --data FOLDER`: 92 published curves, which
#   estimator predicts their far end, and where our own choice fails.
# * `fit.card()` is the JSON to put beside a figure: formula, data digest,
#   parameters, intervals, warnings.
