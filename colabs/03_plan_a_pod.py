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
# # What will it cost? Plan a pod before you pay for it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/OWNER/vitscale/blob/main/colabs/03_plan_a_pod.ipynb)
#
# A config and the name of some hardware: memory a device, what travels between
# devices, the least time of a step, the hours of the whole run. No accelerator
# is needed. For TPUs the real training step goes through the TPU compiler,
# which runs on any CPU; for GPUs it is arithmetic, and says so.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("vitscale") is None:
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  url = "vitscale[tpu] @ git+https://github.com/OWNER/vitscale"
  subprocess.run([*pip, url], check=True)

# %%
import os
import tempfile

import matplotlib.pyplot as plt
from IPython.display import Image, display

from vitscale import plan
from vitscale.core import topology
from vitscale.report import draw_png
from vitscale.report.figures import Axis, Figure, Line, Panel, Points

TOY = os.environ.get("VITSCALE_TOY") == "1"  # fewer plans, for the tests
OUT = tempfile.mkdtemp()

# %% [markdown]
# ## Names of hardware
#
# By shape, or as the cloud calls it.

# %%
for name in ("v5e:16x16", "v5litepod-256", "v5p-1024", "2xv5e:16x16",
             "gpu:64xH100"):  # fmt: skip
  print(f"{name:>14}: {topology.parse(name).describe()}")

# %% [markdown]
# ## One plan
#
# ViT-L/16 for 90 epochs of ImageNet-1k on a node of eight GPUs. Times are
# bounds from below: what the step takes if its binding resource works at the
# published peak. Divide by the utilisation you usually reach.

# %%
one = plan.plan("vit_pod:variant=L/16", topology="gpu:8xH100")
print(plan.text(one))

# %% [markdown]
# ## Which size, how many GPUs?
#
# More devices shorten a run as long as arithmetic is what binds, and the price
# in chip-hours stays. Where the network begins to bind, you pay for waiting.

# %%
variants = ("Ti/16", "S/16") if TOY else ("S/16", "B/16", "L/16", "g/14")
counts = (8, 64) if TOY else (8, 32, 128, 512)
plans = {
  (variant, count): plan.plan(
    f"vit_pod:variant={variant}", topology=f"gpu:{count}xH100"
  )
  for variant in variants
  for count in counts
}
for (variant, count), p in plans.items():
  print(
    f"{variant:>5} on {count:>3}: {p['hours']:8.2f} h,"
    f" {p['chip_hours']:8.1f} chip-hours, bound by {p['bound']['binding']}"
  )

# %%
hours, price = [], []
for variant in variants:
  mine = [plans[variant, count] for count in counts]
  hours += [
    Points(variant, counts, [p["hours"] for p in mine]),
    Line(variant, counts, [p["hours"] for p in mine]),
  ]
  price.append(Line(variant, counts, [p["chip_hours"] for p in mine]))
gpus = Axis("GPUs", "log2", ticks=counts)
figure = Figure(
  "cost", "90 epochs of ImageNet-1k, from below",
  [Panel(gpus, Axis("hours", "log"), hours),
   Panel(gpus, Axis("chip-hours", "log"), price)],
)  # fmt: skip
display(Image(str(draw_png.draw(figure, OUT, dpi=110)["png"])))

# %% [markdown]
# ## Pixels as tokens
#
# Patches of 1x1: 50,176 tokens at 224 px. Sixteen images a GPU and everything
# kept for the backward pass: that doesn't fit, and the plan says by how much
# and what the smallest change is.

# %%
size, batch = (56, 2048) if TOY else (224, 128)
pixels = f"vit_pod:variant=B/1,batch={batch},size={size}"
tight = plan.plan(pixels, ["model.remat=None"], topology="gpu:8xA100")
print("fits" if tight["fits"] else plan.misfit_text(tight))

# %% [markdown]
# Or let it look for the mesh, batch and recomputation that bound best.

# %%
best = plan.plan(pixels, topology="gpu:8xA100", search=True)
print(plan.text(best))

# %% [markdown]
# ## The TPU compiler's word
#
# The step is compiled for the real chips, so the memory below is what would be
# allotted, padding and all. This one is a toy that compiles in seconds; try
# `vit_pod` (ViT-g/14) on `v5e:16x16`, which takes under a minute.

# %%
tpu = plan.plan("vit_fashion", topology="v5e:2x2")
print(plan.text(tpu))
hbm = {k: tpu["hbm"][k] for k in ("argument", "temp", "output", "code")}
_, axes = plt.subplots(figsize=(6, 1.6), layout="constrained")
left = 0.0
for kind, count in hbm.items():
  axes.barh(["HBM"], [count / 2**20], left=left, label=kind)
  left += count / 2**20
axes.set_xlabel("MiB a device")
axes.legend(ncols=4, loc="upper center", bbox_to_anchor=(0.5, 1.6))
plt.show()

# %% [markdown]
# ## Longer sequences than one device holds
#
# `mesh.sequence` splits the tokens of an image. Attention then sees all of them
# by one of three exchanges (`rules.context`): `gather` sends keys and values to
# every device, `ring` passes them on, `ulysses` swaps tokens for heads. The
# compiler shows what each of them moves.

# %%
for context in ("gather", "ring") if TOY else ("gather", "ring", "ulysses"):
  split = plan.plan(
    f"vit_fashion:patch={4 if TOY else 1},depth=1",
    ["mesh.fsdp=1", "mesh.sequence=2", f"rules.context={context}"]
    + ["mesh.replica=2", "model.num_heads=2"],
    topology="v5e:2x2",
  )
  moved = {
    kind: f"{c['count']} ({plan.size_text(c['bytes'])})"
    for kind, c in split["collectives"].items()
  }
  print(f"{context:>8}: {moved}")

# %% [markdown]
# ## Launch it
#
# The same config and the same name of hardware, for the engines that exist:
# queued resources, GKE by xpk, SkyPilot, Slurm. `--dry-run` prints what they
# would get and touches nothing.

# %%
command = (
  "launch vit_pod --on gcloud_tpu --topology v5litepod-256 --project lab"
  " --zone us-west4-a --mount gs://lab=/mnt/lab --out /mnt/lab/runs"
  " --install vitscale[tpu] --spot --dry-run"
)
done = subprocess.run(
  [sys.executable, "-m", "vitscale.cli", *command.split()],
  capture_output=True, text=True, check=True,
)  # fmt: skip
print(done.stdout[-1500:])
