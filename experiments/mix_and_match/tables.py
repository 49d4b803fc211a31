"""Every mix of a nested run on selection and test images, and every pick."""

import dataclasses
import functools
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vitscale.core import tree
from vitscale.data import pipeline, sources
from vitscale.elastic import apart, cut, router, score, select
from vitscale.elastic import space as space_lib
from vitscale.elastic.mixes import Mix
from vitscale.elastic.space import Budget, Space
from vitscale.elastic.trunk import Trunk

BATCH = 1000  # images that are scored at once
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)  # of the span of costs


@dataclasses.dataclass(frozen=True)
class Scores:
  """A nested run's mixes.

  Attributes:
    mixes: all, level numbers by layer.
    cost: (mixes,) from 0, the smallest, to 1, the whole model.
    chosen_on: (mixes,) mean loss on the selection images.
    loss: (mixes,) mean test loss.
    losses: (mixes, images) float16, of single test images.
    correct: (mixes, images) bool, of single test images.
  """

  mixes: list[Mix]
  cost: np.ndarray
  chosen_on: np.ndarray
  loss: np.ndarray
  losses: np.ndarray
  correct: np.ndarray

  @property
  def accuracy(self) -> np.ndarray:
    """(mixes,) test accuracy."""
    return self.correct.mean(1)


@dataclasses.dataclass(frozen=True)
class Pick:
  """What a selector took: the number of a mix, and how many it scored."""

  mix: int
  scored: int


def scores_of(run: dict[str, Any], cache: Path) -> tuple[Scores, dict]:
  """Scores of a run, and `picks[selector, share]`; both cached by digest."""
  big = cut.open_run(Path(run["workdir"]), nested=True)
  nest = cut.nested(big)
  price = lambda little: space_lib.cost("macs", little, big.image)
  space = Space(big.bench.model, big.bench.task.granularities, price)
  mixes = space.shape("all")
  file = cache / f"mixes-{digest(nest.params, big.run['config'])}.npz"
  if not file.exists():
    cache.mkdir(parents=True, exist_ok=True)
    found = scored(big, nest, space, mixes)
    part = file.with_suffix(".part.npz")
    np.savez(part, **found)
    part.rename(file)
  with np.load(file) as stored:
    found = {key: stored[key] for key in stored.files}
  low, high = space.ends()
  cost = np.array([space.of(mix) for mix in mixes], np.float64)
  bits = np.unpackbits(found["correct"], axis=1, count=int(found["images"]))
  made = Scores(
    mixes, (cost - low) / (high - low), found["chosen_on"], found["loss"],
    found["losses"], bits.astype(bool),
  )  # fmt: skip
  return made, picks(big, nest, space, made)


def digest(params: Any, config: Any) -> str:
  """Of weights and data: what the scores depend on."""
  sha = hashlib.sha256(repr(sorted(dict(config["data"]).items())).encode())
  for path, x in tree.flatten(jax.device_get(params)).items():
    sha.update(path.encode() + np.asarray(x).tobytes())
  return sha.hexdigest()[:16]


def scored(
  big: cut.Nested, nest: score.Nest, space: Space, mixes: list[Mix]
) -> dict[str, np.ndarray]:
  """Arrays of `Scores`, as they are stored."""
  start = time.monotonic()
  selection, test = (images(big.run["config"], s) for s in ("val", "test"))
  trunk = lambda *ask: Trunk(
    nest.task, nest.model, nest.params, nest.names, space.levels,
    next(iter(selection())), *ask,
  )  # fmt: skip
  chosen_on = score.shared_losses(trunk(score.sums), mixes, selection)
  found = score.tables(trunk(), mixes, test)
  seconds = time.monotonic() - start
  count = found["nll"].shape[1]
  layers = score.saving(mixes)
  print(
    f"scored {len(mixes)} mixes on two splits, {count} test images, in"
    f" {seconds:.0f} s, {layers['layers_run']} layers for {layers['layers']}",
    file=sys.stderr,
  )
  return {
    "chosen_on": np.asarray(chosen_on),
    "loss": found["nll"].mean(1, dtype=np.float64),
    "losses": found["nll"].astype(np.float16),
    "correct": np.packbits(found["correct"], axis=1),
    "images": np.int64(count),
  }


def images(config: Any, split: str) -> score.Batches:
  """One pass over a split of a run's data, in batches that keep calls few."""
  data = {k: v for k, v in config["data"].items() if k != "source"}
  source = sources.make(config["data"]["source"], split=split, **data)
  return functools.partial(pipeline.eval_batches, source, batch_size=BATCH)


def picks(
  big: cut.Nested, nest: score.Nest, space: Space, scores: Scores
) -> dict[tuple[str, float], Pick]:
  """What every selector takes at every budget; all but the router by table."""
  number = {mix: i for i, mix in enumerate(scores.mixes)}
  low, high = space.ends()
  seed = int(big.run["config"]["seed"])
  seen = apart.images(big.run["config"], "val")
  learned = router.train(space, score.Soft(nest, space, seen.batches), seed)
  found = {}
  for share in SHARES:
    asked = Budget("macs", low + share * (high - low), str(share))
    for how in select.SELECTORS:
      if how == "router":
        found[how, share] = Pick(number[learned.pick(asked.limit)], 0)
        continue
      judge = score.Judge(
        lambda mixes: [scores.chosen_on[number[mix]] for mix in mixes]
      )
      choice = select.choose(space, asked, how, judge, seed)
      mix = space.mix(choice.spec)
      found[how, share] = Pick(number[mix], choice.scored)
  return found
