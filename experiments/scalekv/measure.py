"""What a generator says under caches of several budgets, see README.md."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale import tokenizer as tokenizer_lib
from vitscale import workdir
from vitscale.core.log import read_json, write_json
from vitscale.data import sources
from vitscale.metrics import features, networks, samples
from vitscale.parent import TEACHER
from vitscale.sampling import scale_kv, scale_kv_roles, scales
from vitscale.sampling.scale_kv import Plan

ARMS = ("scalekv", "even", "latest", "random")
FULL = "full"
FD = f"fd_{features.NAME}"


@dataclasses.dataclass(frozen=True)
class Options:
  """What is measured.

  Attributes:
    shares: budgets, of what a full cache carries into the last scale.
    images: of `test` that are teacher-forced, and samples.
    calibration: images of `val`, in two halves.
    batch: images at once; divides the others.
    window, kernel, start: of `scale_kv.Plan`.
  """

  shares: tuple[float, ...]
  images: int
  calibration: int = 400
  batch: int = 50
  window: int = 4
  kernel: int = scale_kv.KERNEL
  start: int = 0


def measured(path: str | Path, options: Options) -> dict[str, Any]:
  """`measure` of a run, or what it found before."""
  kept, asked = Path(path) / "scalekv.json", dataclasses.asdict(options)
  old = read_json(kept)
  same = old and old["options"] == {**asked, "shares": list(options.shares)}
  if not same:
    write_json(kept, {"options": asked, **measure(path, options)})
  return read_json(kept)


def plans(
  sides: tuple[int, ...],
  roles: list[list[int]],
  depth: int,
  share: float,
  options: Options,
) -> dict[str, Plan]:
  """Every arm's plan at one budget."""
  split = scale_kv.allocate(sides, roles, depth, share)
  alike = scale_kv.even(split)
  rest = {
    "window": options.window, "kernel": options.kernel, "start": options.start,
  }  # fmt: skip
  return {
    "scalekv": Plan(split, scale_kv.attention, **rest),
    "even": Plan(alike, scale_kv.attention, **rest),
    "latest": Plan(alike, scale_kv.latest, **rest),
    "random": Plan(alike, scale_kv.random, **rest),
  }


def measure(path: str | Path, options: Options) -> dict[str, Any]:
  """Calibrates one generator, and runs it under every plan.

  Returns:
    `roles`, drafters of each scale; `stable`, the share of layers and scales
    whose role two halves of the calibration agree on; `selectivity`; `full`
    and `cells`, share -> arm -> what was found, see `Bench.scores`.
  """
  bench = Bench(path, options)
  model, halves = bench.model, []
  codes, label = bench.read("val", options.calibration)
  for half in np.split(np.arange(options.calibration), 2):
    parts = np.split(half, max(len(half) // options.batch, 1))
    batches = [(codes[part], label[part]) for part in parts]
    halves.append(bench.run(scale_kv_roles.calibrate, batches))
  selectivity, few = np.mean(halves, 0), model.depth // 2
  roles = scale_kv_roles.drafters(selectivity, few)
  both = [scale_kv_roles.drafters(half, few) for half in halves]
  agree = [len(set(a) & set(b)) / few for a, b in zip(*both)]
  cells: dict[str, Any] = {}
  for share in options.shares:
    made = plans(model.scales, roles, model.depth, share, options)
    # All arms keep everything there: one is enough.
    arms = ARMS[:1] if share == 1 else ARMS
    cells[f"{share:g}"] = {arm: bench.scores(made[arm]) for arm in arms}
  return {
    "roles": roles, "stable": float(np.mean(agree[1:])),
    "selectivity": selectivity, FULL: bench.scores(None), "cells": cells,
  }  # fmt: skip


class Bench:
  """A generator, `test`, and what it says with a full cache."""

  def __init__(self, path: str | Path, options: Options):
    run, variables, _ = workdir.restored(path)
    self.options, self.model = options, run.model
    self.neck, self.codebook = run.task.neck, variables[TEACHER]
    self.variables = {"params": variables["params"]}
    self.source = functools.partial(
      sources.make, "latents", path=run.config["data"]["path"]
    )
    self.tokenizer = tokenizer_lib.of(run.source.tokenizer)
    self.codes, self.label = self.read("test", options.images)
    self.real = self.seen(self.codes)
    self.full = self.said(None)

  def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of model, variables, neck and codebook."""
    own = (self.model, self.variables, self.neck, self.codebook)
    return function(*own, *args, **kwargs)

  def read(self, split: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, N) and labels of a split, from all over it."""
    source = self.source(split=split)
    rows = np.linspace(0, len(source) - 1, n).round().astype(int)
    batch = source.read(rows)
    return batch["image"][:, 0, :, 0], batch["label"]

  def pixels(self, codes: np.ndarray) -> np.ndarray:
    """Codes (b, N) -> uint8 images."""
    return self.tokenizer.decode(np.asarray(codes)[:, None, :, None])

  def seen(self, codes: np.ndarray) -> samples.Samples:
    """Decoded codes, as the random convolutions see them."""
    net = networks.network(features.NAME)
    found = samples.Samples(net.dim)
    for part in self.batches(len(codes)):
      found.add(np.asarray(net(jnp.asarray(self.pixels(codes[part])))))
    return found

  def batches(self, n: int) -> list[np.ndarray]:
    return np.split(np.arange(n), max(n // self.options.batch, 1))

  def said(self, plan: Plan | None) -> dict[str, Any]:
    """Log-probabilities of `test`, samples, the likeliest codes, bytes."""
    logs, drawn, held = [], [], set()
    for i, part in enumerate(self.batches(self.options.images)):
      key = jax.random.fold_in(jax.random.key(0), i)
      codes, label = self.codes[part], self.label[part]
      logits, caches = self.run(
        scale_kv_roles.evicted, codes, label, key, plan
      )  # fmt: skip
      held.add(scale_kv_roles.held(caches) / len(part))
      logs.append(np.asarray(jax.nn.log_softmax(logits)))
      drawn.append(self.drawn(key, label, plan))
    classes = np.arange(self.model.num_classes)
    likeliest = self.drawn(jax.random.key(0), classes, plan, temperature=0)
    return {
      "log": np.concatenate(logs), "drawn": np.concatenate(drawn),
      "likeliest": likeliest, "bytes": held.pop(),
    }  # fmt: skip

  def drawn(self, key, label, plan, **options: Any) -> np.ndarray:
    codes = self.run(
      scales.generate, key, len(label), label, evict=plan, **options
    )
    return np.asarray(codes)

  def scores(self, plan: Plan | None) -> dict[str, Any]:
    """One arm against the full cache.

    Returns:
      `kl` of each image, nats a token over the scales that read an evicted
      cache; `bytes` of an image's cache; `differs`, the largest difference
      of a log-probability and of a code; `fd`; and `agreement` and `psnr`,
      of samples and (`_0`) at temperature 0.
    """
    full, mine = self.full, self.said(plan) if plan else self.full
    first = self.first(plan)
    p, q = (x["log"][:, first:].astype(np.float64) for x in (full, mine))
    codes = np.abs(full["drawn"] - mine["drawn"]).max()
    found = {
      "kl": (np.exp(p) * (p - q)).sum(-1).mean(1),
      "bytes": mine["bytes"],
      "differs": float(max(np.abs(p - q).max(), codes)),
      "fd": samples.distance(self.real, self.seen(mine["drawn"]), FD)[FD],
      "capacities": plan.capacities if plan else None,
    }
    for kind, end in (("drawn", ""), ("likeliest", "_0")):
      a, b = full[kind], mine[kind]
      found[f"agreement{end}"] = float((a == b)[:, first:].mean())
      images = [self.pixels(x).astype(np.float64) / 255 for x in (a, b)]
      error = float(np.square(images[0] - images[1]).mean())
      # Equal images have no PSNR that a mean could take.
      found[f"psnr{end}"] = -10 * np.log10(error) if error else None
    found["likeliest"] = mine["likeliest"]
    return found

  def first(self, plan: Plan | None) -> int:
    """The first token that reads an evicted cache; 0 if none does."""
    sides = self.model.scales
    full = scale_kv.carried(sides)
    for n, row in zip(full, plan.capacities if plan else ()):
      if min(row) < n:
        return n
    return 0
