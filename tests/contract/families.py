"""One family under test: its toy, variables moved off zero, its gradients.

Whatever compiles is cached, so that one compiled `value_and_grad` serves
several checks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale import zoo
from vitscale.core import axes
from vitscale.nn.patch import pair

SLICED = ("mlp", "heads")  # axes along which masking equals slicing


class Family:
  """The toy of a family: `Family("vit")`."""

  def __init__(self, name: str):
    self.name = name

  @property
  def module(self):
    return zoo.family(self.name)

  @functools.cached_property
  def toy(self) -> zoo.Shown:
    return zoo.presented(self.module)[0]

  @functools.cached_property
  def base(self):
    return self.toy.model()

  def has(self, *fields: str) -> bool:
    return set(fields) <= self.toy.fields

  # ------------------------------------------------------------------ inputs

  def image(self, size: tuple[int, int] | None = None, batch: int = 2):
    """Normal noise of the toy's size, or another."""
    h, w, c = self.toy.image
    shape = (batch, *(size or (h, w)), c)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)

  def stride(self) -> tuple[int, int]:
    """Pixels per token of the coarsest features."""
    run = lambda v, x: self.call(self.base, v, x)[1]["features"][-1][0]
    grid = jax.eval_shape(run, self.shapes(), self.toy.abstract()).shape[1:3]
    return tuple(-(-side // g) for side, g in zip(self.toy.image, grid))

  def boxed(self, model=None, size=None):
    image = jax.ShapeDtypeStruct(self.image(size).shape, jnp.float32)
    return zoo.boxed(self.module, model or self.base, image)

  def shapes(self, model=None, size=None):
    return axes.unbox(self.boxed(model, size))

  @functools.cache  # noqa: B019, families live as long as the tests
  def variables(self, size: tuple[int, int] | None = None) -> Any:
    """Initialised variables, each parameter moved by a little noise.

    A head that starts at zero would pass no gradient to the rest.
    """
    image = self.image(size)
    more = zoo.more_inputs(self.module, image)
    init = lambda key: axes.unbox(self.base.init(key, image, **more))
    variables = jax.device_get(jax.jit(init)(jax.random.key(0)))
    rng = np.random.default_rng(1)
    noise = lambda x: x + rng.normal(size=x.shape).astype(x.dtype) * 0.02
    return {**variables, "params": jax.tree.map(noise, variables["params"])}

  # ----------------------------------------------------------------- programs

  def call(self, model, variables, image, **kwargs):
    more = zoo.more_inputs(self.module, image)
    return model.apply(variables, image, **more, **kwargs)

  def loss(self, model):
    """f(params, rest, image) -> (mean square distance to waves, y)."""

    def loss(params, rest, image):
      y, _ = self.call(model, {**rest, "params": params}, image)
      parts = [p for p in jax.tree.leaves(y) if jnp.issubdtype(p, jnp.floating)]
      wave = lambda p: jnp.cos(jnp.arange(p.size, dtype=jnp.float32))
      far = [jnp.square(p - wave(p).reshape(p.shape)).mean() for p in parts]
      return sum(far), y

    return loss

  def gradient(self, model):
    """f(variables, image) -> ((loss, y), gradient of the parameters)."""
    grad = jax.value_and_grad(self.loss(model), has_aux=True)

    def run(variables, image):
      rest = {k: v for k, v in variables.items() if k != "params"}
      return grad(variables["params"], rest, image)

    return run

  def outcome(self, variables=None, **changes: Any):
    """(loss, y, gradient) of the toy with some options changed."""
    if not changes:
      return self._plain
    model = self.toy.model(**changes)
    variables = self.variables() if variables is None else variables
    return _outcome(self.gradient(model), variables, self.image())

  @functools.cached_property
  def _plain(self):
    return _outcome(self.gradient(self.base), self.variables(), self.image())

  # ------------------------------------------------------------------ slicing

  def sizes(self) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of a model and of one with half of its hidden units and heads.

    Heads keep their width; options of a pyramid are one number per stage.
    """
    model, big, small = self.base, {}, {}
    half = functools.partial(_each, lambda n: max(n // 2, 1))
    if self.has("mlp_dim"):
      small["mlp_dim"] = half(model.mlp_dim)
    if self.has("num_heads", "head_dim", "width"):
      small["num_heads"] = half(model.num_heads)
      width = _each(lambda d, h: d // h, model.width, model.num_heads)
      big["head_dim"] = small["head_dim"] = model.head_dim or width
    return big, small

  @staticmethod
  def masked(params, names, small):
    """`params` without the rows that only dropped units and heads write."""

    def mask(x, named, little):
      x = np.array(x)
      for dim, name in enumerate(named.names):
        if axes.role(name) in SLICED and name in named.fan_in:
          rest = (slice(None),) * dim + (slice(little.shape[dim], None),)
          x[rest] = 0
      return x

    return jax.tree.map(mask, params, names, small)


def _each(f, *values):
  if isinstance(values[0], (tuple, list)):
    return tuple(f(*v) for v in zip(*values))
  return f(*values)


def _outcome(run, variables, image):
  (loss, y), grads = jax.device_get(jax.jit(run)(variables, image))
  return loss, y, grads


def same_grid(features, size) -> bool:
  """Whether (b, gh, gw, d) at a stride covers an image of (h, w)."""
  array, stride = features
  want = tuple(-(-n // s) for n, s in zip(size, pair(stride)))
  return array.ndim == 4 and array.shape[1:3] == want


def gap(a: Any, b: Any) -> float:
  """Largest difference of two trees, per leaf relative to its largest entry.

  A leaf that is (nearly) zero everywhere is measured against a hundredth of
  the largest entry of the tree.
  """
  assert jax.tree.structure(a) == jax.tree.structure(b)
  pairs = [
    (np.asarray(x, np.float64), np.asarray(y, np.float64))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b))
  ]
  floor = max(np.abs(y).max() for _, y in pairs) / 100
  worst = 0.0
  for x, y in pairs:
    assert x.shape == y.shape, (x.shape, y.shape)
    far = np.abs(x - y).max() / max(np.abs(y).max(), floor)
    worst = max(worst, float(far) if np.isfinite(far) else np.inf)
  return worst
