"""Token mixers and self-pretraining on the Long Range Arena. See README.md.

The claims and their thresholds are in the README and were written before the
runs. This file is the design: tasks, arms, scales, rates, runs. The judgement
is in analysis.py and uses nothing but the runs.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vitscale.arms import best_rate
from vitscale.core import config as config_lib
from vitscale.core.config import load_module
from vitscale.models import vit
from vitscale.study import Run

analysis = load_module(Path(__file__).parent / "analysis.py")

PILOT = 1000  # seed of pilots, disjoint from every study's
SKIP = "head/.*|masked/.*"  # what fine-tuning leaves behind
UNCHANGED = {"mean": (0.0,), "std": (1 / 255,)}  # tokens are no grey levels


@dataclasses.dataclass(frozen=True)
class Task:
  """A task at a size.

  Attributes:
    config: its groups `data`, `model` (of the base), `task`, `train`, `optim`,
      and batch_size.
    image: (rows, columns, channels) that the model sees.
    classes: labels.
    steps: of every arm from scratch.
    mixers: arms beside the base, as in `model.mixer`.
    share: of the tokens that self-pretraining hides.
  """

  config: Mapping[str, Any]
  image: tuple[int, int, int]
  classes: int
  steps: int
  mixers: tuple[str, ...]
  share: float


@dataclasses.dataclass(frozen=True)
class Scale:
  """How large, how often, and what is tuned.

  Attributes:
    tasks: by name.
    seeds: of every arm.
    rates: tried by pilots; empty for the published ones.
    test: examples tested on.
  """

  tasks: Mapping[str, Task]
  seeds: tuple[int, ...]
  rates: tuple[float, ...]
  test: int | None = 2000


def _small(width: int, depth: int, **options: Any) -> dict[str, Any]:
  return {
    "family": "vit", "width": width, "depth": depth, "mlp_dim": 2 * width,
    "num_heads": 4, **options,
  }  # fmt: skip


def _listops(n, lengths, steps, width, depth) -> Task:
  data = {"source": "listops", "n": n}
  return Task(
    config={
      "batch_size": 64,
      "data": {**data, "min_length": lengths[0], "max_length": lengths[1]},
      "model": _small(
        width, depth, patch_size=1, position="sincos1d", pool="cls",
        vocabulary=17, pad_token=0,
      ),
      "task": UNCHANGED,
    },
    image=(1, lengths[1], 1),
    classes=10,
    steps=steps,
    mixers=("linear()", "window(8)"),
    share=0.15,
  )  # fmt: skip


def _pathfinder(
  n, paddles, distractors, steps, width, depth, mixers=("linear()", "window(3)")
) -> Task:
  shape = {"paddles": paddles, "distractors": distractors}
  return Task(
    config={
      "batch_size": 64,
      "data": {"source": "pathfinder", "size": 16, "n": n, **shape},
      "model": _small(
        width, depth, patch_size=2, position="sincos2d", pool="mean"
      ),
    },
    image=(16, 16, 1),
    classes=2,
    steps=steps,
    mixers=mixers,
    share=0.5,
  )


def _published(name: str, classes: int) -> Task:
  """The frozen config of configs/lra.py, its training included."""
  config = config_lib.load(f"lra:{name}").to_dict()
  examples = {"listops": 96_000}.get(name, 160_000)
  epochs = config.pop("total_epochs", None)
  steps = config.pop("total_steps", None) or round(
    epochs * examples / config["batch_size"]
  )
  n = {"listops": config["data"].get("max_length")}.get(name, 1024)
  return Task(
    {key: config[key] for key in analysis.GROUPS}, (1, n, 1), classes, steps,
    ("linear()", "performer(256)", "window(64)"),
    0.15 if name == "listops" else 0.5,
  )  # fmt: skip


SCALES = {
  "smoke": Scale(
    {
      "listops": _listops(256, (5, 24), 6, 16, 1),
      "pathfinder": _pathfinder(128, 2, 0, 6, 16, 1),
    },
    (0,), (4e-3,), 64,
  ),
  "quick": Scale(
    {
      "listops": _listops(16_000, (8, 32), 400, 32, 2),
      "pathfinder": _pathfinder(8000, 2, 0, 750, 32, 2, ("linear()",)),
    },
    (0, 1, 2), (2e-3, 4e-3),
  ),
  "cpu": Scale(
    {
      "listops": _listops(50_000, (16, 64), 3000, 48, 4),
      "pathfinder": _pathfinder(20_000, 3, 1, 3000, 48, 4),
    },
    (0, 1, 2), (1e-3, 2e-3, 4e-3),
  ),
  "gpu": Scale(
    {
      "listops": _published("listops", 10),
      "pathfinder": _published("pathfinder", 2),
    },
    (0, 1, 2), (), None,
  ),
}  # fmt: skip


def macs(task: Task, mixer: str = "softmax") -> int:
  """Multiply-accumulates of one forward pass of an example."""
  options = {k: v for k, v in task.config["model"].items() if k != "family"}
  options |= {"num_classes": task.classes, "mixer": mixer}
  return vit.flops_per_image(options, task.image)


def config(
  scale: Scale,
  task: Task,
  *,
  lr: float,
  seed: int,
  split: str,
  mixer: str = "softmax",
  masked: bool = False,
  flops: float | None = None,
  init: Mapping[str, Any] | None = None,
) -> ConfigDict:
  """One run, scored on `split` at its end.

  Args:
    scale, task: what is asked.
    lr, seed: of the run.
    split: held-out data.
    mixer: of the model.
    masked: fills in instead of classifying.
    flops: length in training FLOPs; None for the task's steps.
    init: where its weights come from.
  """
  made = ConfigDict({"train": {"split": "train"}, "task": {}, **task.config})
  made.seed = seed
  made.update({"total_flops": flops} if flops else {"total_steps": task.steps})
  made.model.mixer = mixer
  named = {"name": "masked", "share": task.share}
  made.task.update(named if masked else {"name": "classify"})
  if "optim" not in made:
    made.optim = {
      "name": "adamw", "weight_decay": 0.05, "clip_norm": 1.0,
      "schedule": {"kind": "cosine", "warmup_percent": 10.0},
    }  # fmt: skip
  made.optim.lr = lr
  if flops and "warmup_steps" in made.optim.schedule:
    made.optim.schedule.warmup_steps //= 2  # of half the run
  evaluate = {
    "split": split, "every_percent": 100.0, "batch_size": 200,
    "transform": made.train.get("transform", ""),
  }  # fmt: skip
  if scale.test:
    evaluate["data"] = {"n": scale.test}
  elif made.data.source == "pathfinder":
    evaluate["data"] = {"n": 20_000}
  made.evals = {split: evaluate}
  made.log = {"every_percent": 20.0}
  made.checkpoint = {"keep": 1, "every_percent": 100.0}
  if init:
    made.init = dict(init)
  return made


def runs(scale: str, done: Mapping[str, Any]) -> list[Run]:
  """Pilots of the base, every mixer at its rate, and self-pretraining."""
  which, named = SCALES[scale], []
  for name, task in which.tasks.items():
    for lr in which.rates:
      facts = {"arm": "pilot", "task": name, "lr": lr}
      made = config(which, task, lr=lr, seed=PILOT, split="val")
      named.append(Run(f"pilot-{name}-{lr:g}", made, facts, may_fail=True))
  for name, task in which.tasks.items():
    lr = best_rate(done, task=name) if which.rates else None
    if which.rates and lr is None:
      continue
    lr = lr or task.config["optim"]["lr"]
    for seed in which.seeds:
      named += _arms(which, name, task, lr, seed, done)
  return named


def _arms(which, name, task, lr, seed, done) -> list[Run]:
  """All runs of a task and a seed that can begin."""
  add, made = {"lr": lr, "seed": seed}, []

  def run(arm, cost, config_):
    facts = {"arm": f"{name}/{arm}", "task": name, "seed": seed}
    cost *= task.config["batch_size"]
    made.append(Run(f"{name}-{arm}-s{seed}", config_, facts, cost=cost))

  whole = task.steps * macs(task)
  for mixer in ("softmax", *task.mixers):
    made_ = config(which, task, **add, split="test", mixer=mixer)
    run(mixer.partition("(")[0], task.steps * macs(task, mixer), made_)
  # Half of the FLOPs of `softmax` each.
  half = 6 * whole * task.config["batch_size"] / 2
  first = config(which, task, **add, split="val", masked=True, flops=half)
  run("masked", whole / 2, first)
  parent = done.get(f"{name}-masked-s{seed}")
  if parent and parent["status"] == "finished":
    start = {"from": near(parent["workdir"]), "skip": SKIP}
    add["seed"] = seed + 100  # other batches than its parent's
    tuned = config(which, task, **add, split="test", flops=half, init=start)
    run("spt", whole / 2, tuned)
  return made


def near(path: str) -> str:
  """Relative to the current directory where it lies below it."""
  below = Path(path).absolute().is_relative_to(Path.cwd())
  return os.path.relpath(path) if below else path


def analyse(results: Mapping[str, Any], scale: str) -> Mapping[str, Any]:
  """Verdicts, tables and figures of the finished runs."""
  return analysis.analyse(results)
