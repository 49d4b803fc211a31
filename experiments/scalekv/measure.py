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
from vitscale.sampling import categorical, scale_kv, scale_kv_roles, scales
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
    whose role two halves of the calibration agree on; `selectivity`;
    `differs` of the whole budget, see `Bench.differs`; `full` and `cells`,
    share -> arm -> what was found, see `Bench.scores`.
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
  whole = None
  for share in options.shares:
    made = plans(model.scales, roles, model.depth, share, options)
    if share == 1:  # all arms keep everything there
      whole = bench.differs(made["scalekv"])
      continue
    cells[f"{share:g}"] = {arm: bench.scores(made[arm]) for arm in ARMS}
  return {
    "roles": roles, "stable": float(np.mean(agree[1:])),
    "selectivity": selectivity, "differs": whole,
    FULL: bench.scores(None), "cells": cells,
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
    shown = self.shown(self.codes)
    logs, drawn, held = [], [], set()
    batches = self.batches(self.options.images)
    for i, part in enumerate(batches):
      key = jax.random.fold_in(jax.random.key(0), i)
      parts = [None, *(x[part] for x in shown)]
      logits, size = self.walk(plan, key, self.label[part], parts)
      logs.append(np.asarray(jax.nn.log_softmax(logits)))
      drawn.append(self.walk(plan, key, self.label[part], 1.0)[0])
      held.add(size / len(part))
    # As many as before, of which a class's first is looked at.
    classes = self.model.num_classes
    label = np.arange(len(batches[0])) % classes
    likeliest, _ = self.walk(plan, jax.random.key(0), label, 0.0)
    return {
      "log": np.concatenate(logs), "drawn": np.concatenate(drawn),
      "likeliest": likeliest[:classes], "bytes": held.pop(),
    }  # fmt: skip

  def shown(self, codes: np.ndarray) -> list[np.ndarray]:
    """What each scale but the first is shown of codes."""
    inputs = functools.partial(self.neck.apply, method="inputs")
    shown = jax.jit(inputs)({"params": self.codebook}, codes)
    ends = np.cumsum(np.square(self.model.scales[1:]))[:-1]
    return np.split(np.asarray(shown), ends, 1)

  def walk(
    self, plan: Plan | None, key: jax.Array, label: np.ndarray, how: Any
  ) -> tuple[np.ndarray, int]:
    """Scale after scale, each a program of its own.

    Plans share the programs of all scales that they treat alike; draws are
    those of `sampling.scales.generate`.

    Args:
      how: what each scale is shown, or the temperature of draws.

    Returns:
      logits (b, N, v), or the codes drawn (b, N); and the bytes of the
      largest cache.
    """
    model, neck = self.model, self.neck
    forced = isinstance(how, list)
    condition = told(self.variables, label, model=model)
    cache, total, shown, said = (None,) * model.depth, None, None, []
    held = 0
    for k in range(len(model.scales)):
      logits, cache = step(
        self.variables, how[k] if forced else shown, condition, cache, key,
        model=model, k=k, plan=only(plan, k, model.scales),
      )  # fmt: skip
      if k + 1 < len(model.scales):
        held = max(held, scale_kv_roles.held([cache]))
      if forced:
        said.append(logits)
        continue
      codes, total, shown = follow(
        self.codebook, total, logits, jax.random.fold_in(key, k),
        neck=neck, k=k, temperature=how,
      )  # fmt: skip
      said.append(codes)
    return np.concatenate(said, 1), held

  def differs(self, plan: Plan) -> float:
    """The largest difference of a logit or code that a plan makes.

    Of the one program that `generate` is, and that of `evicted`.
    """
    part = self.batches(self.options.images)[0]
    key, label = jax.random.key(0), self.label[part]
    found = [
      (
        self.run(scales.generate, key, len(part), label, evict=each),
        self.run(scale_kv_roles.evicted, self.codes[part], label, key, each)[0],
      )
      for each in (None, plan)
    ]
    return max(float(np.abs(a - b).max()) for a, b in zip(*found))

  def scores(self, plan: Plan | None) -> dict[str, Any]:
    """One arm against the full cache.

    Returns:
      `kl` of each image, nats a token over the scales that read an evicted
      cache; `bytes` of an image's cache; `fd`; and `agreement` and `psnr`, of
      samples and (`_0`) at temperature 0.
    """
    full, mine = self.full, self.said(plan) if plan else self.full
    first = self.first(plan)
    p, q = (x["log"][:, first:].astype(np.float64) for x in (full, mine))
    found = {
      "kl": (np.exp(p) * (p - q)).sum(-1).mean(1),
      "bytes": mine["bytes"],
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


# -------------------------------------------------------------------- programs


def only(plan: Plan | None, k: int, sides: tuple[int, ...]) -> Plan | None:
  """A plan without what it does after other scales than k.

  So that plans that do the same are equal; None where nothing is evicted.
  """
  full = scale_kv.carried(sides)
  if plan is None or k >= len(full) or min(plan.capacities[k]) >= full[k]:
    return None
  rows = [(n,) * len(plan.capacities[k]) for n in full]
  rows[k] = plan.capacities[k]
  return dataclasses.replace(plan, capacities=tuple(rows))


@functools.partial(jax.jit, static_argnames="model")
def told(variables, label, *, model):
  """Embedded classes."""
  return model.apply(variables, label, len(label), method="condition")


@functools.partial(jax.jit, static_argnames=("model", "k", "plan"))
def step(variables, shown, condition, cache, key, *, model, k, plan):
  """`scales.advance`, and what is kept."""
  keep = plan.keep(k, key) if plan else None
  return scales.advance(model, variables, k, shown, condition, cache, keep)


@functools.partial(jax.jit, static_argnames=("neck", "k", "temperature"))
def follow(codebook, total, logits, key, *, neck, k, temperature):
  """Codes of one scale, and what they add up to."""
  codes = categorical.draw(key, logits, temperature)
  return codes, *neck.apply({"params": codebook}, total, codes, k, method="add")
