"""Measured time of nested models, and a table that adds up to it.

A model is compiled for one batch of images and run as it will be: a forward
pass, no gradients. Models are timed in turns, so that what slows a machine for
a while slows all of them, and the median of each counts.

The table is made of uniform models, all layers at one level: what a level saves
is measured there, where it is largest against the noise, and divided over the
layers in proportion to the multiply-accumulates it saves in each. Whether that
adds up is then seen on the chosen model itself, which `cut` measures too.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes as axes_lib
from vitscale.core import sharding
from vitscale.core.errors import UserError
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.space import Space, cost
from vitscale.elastic.spec import ElasticSpec

BATCH, REPEATS, WARM_UP = 8, 25, 3
NOISE = 1.05  # a smaller model may take this many times a larger one's time
Measure = Callable[[Sequence[nn.Module]], list[float]]


def measure(
  models: Sequence[nn.Module],
  *,
  image: tuple[int, int, int],
  batch: int = BATCH,
  repeats: int = REPEATS,
  clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
  """Median milliseconds of a forward pass of each model on this device.

  Args:
    models: with random parameters; times don't depend on their values.
    image: (h, w, c).
    batch: images in one pass.
    repeats: passes that count, after `WARM_UP` that don't.
    clock: seconds.
  """
  calls = [_call(model, (batch, *image)) for model in models]
  return medians(calls, repeats=repeats, clock=clock)


def medians(
  calls: Sequence[Callable[[], Any]],
  *,
  repeats: int,
  clock: Callable[[], float],
) -> list[float]:
  """Median milliseconds of each call, measured in turns."""
  times: list[list[float]] = [[] for _ in calls]
  for turn in range(WARM_UP + repeats):
    for call, own in zip(calls, times):
      start = clock()
      call()
      if turn >= WARM_UP:
        own.append(1e3 * (clock() - start))
  return [statistics.median(own) for own in times]


def _call(model: nn.Module, shape: tuple[int, ...]) -> Callable[[], Any]:
  """A compiled forward pass that ends when its result is there."""
  image = jnp.zeros(shape, jnp.float32)
  with sharding.use(None):
    boxed = jax.eval_shape(model.init, jax.random.key(0), image[:1])
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: jnp.asarray(0.02 * rng.standard_normal(x.shape), x.dtype),
    axes_lib.unbox(boxed),
  )
  run = jax.jit(lambda v, image: model.apply(v, image)[0])
  compiled = run.lower(variables, image).compile()
  return lambda: jax.block_until_ready(compiled(variables, image))


class Table:
  """Milliseconds of a nested model and of what its levels save.

  Attributes:
    uniform: level -> of the model with all layers at it; the whole one too.
  """

  def __init__(
    self,
    model: nn.Module,
    levels: Sequence[Fraction],
    image: tuple[int, int, int],
    timed: Measure,
  ):
    """Measures one model a level; the whole model is the last one.

    Raises:
      UserError: times that don't rise with the levels.
    """
    self._timed = timed
    parts = list(dict.fromkeys([*levels, spec_lib.WHOLE]))
    small = lambda part: spec_lib.small(model, ElasticSpec(ffn=(part,)))[0]
    models = [small(part) for part in parts]
    self.uniform = dict(zip(parts, timed(models)))
    self.whole = self.uniform[spec_lib.WHOLE]
    times = list(self.uniform.values())
    if any(a > NOISE * b for a, b in itertools.pairwise(times)):
      levels = [f"{part}: {time:.4g}" for part, time in self.uniform.items()]
      raise UserError(
        f"measured times do not rise with the levels ({', '.join(levels)} ms):"
        " the machine is busy, or the batch too small for this device; try"
        " again, or a larger --latency-batch"
      )
    self._prices = {model: self.whole}
    self._macs = Space(
      model,
      [str(ElasticSpec(ffn=(part,))) for part in parts],
      lambda little: cost("macs", little, image),
    )

  def saved(self, layer: int, level: Fraction) -> float:
    """Of the whole model's time, by one layer at a level."""
    at = self._macs.levels.index(level)
    macs = [self._macs.saved(i, at) for i in range(self._macs.depth)]
    return macs[layer] / sum(macs) * (self.whole - self.uniform[level])

  def price(self, model: nn.Module) -> float:
    """Of the whole model as in the table, of any other measured once."""
    if model not in self._prices:
      self._prices[model] = self._timed([model])[0]
    return self._prices[model]


def here() -> dict[str, Any]:
  """What a measured time belongs to: device, as jax names it."""
  device = jax.local_devices()[0]
  return {"platform": device.platform, "device": device.device_kind}
