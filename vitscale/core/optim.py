"""Optimizers read off axis names: who decays, who is frozen, how fast.

    optimizer = make(config, abstract, names, total_steps=10_000)
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params, step, lr)
    params = optax.apply_updates(params, updates)

The base learning rate is an argument of `update`, so that a sweep over it
shares one compiled step. One parameter p with gradient g moves by

    -lr * schedule(step) * scale * (mup * direction(g) + weight_decay * p)

muP (Yang et al. 2022, "Tensor Programs V", arXiv 2203.03466, Table 3) is one
formula once fan-in and fan-out are declared. With r_in, r_out the growth of a
parameter's fans over the base model: Adam, Lion 1 / r_in, SGD r_out / r_in.
That is Table 3 for hidden, output (r_out = 1), input and vector-like (r_in =
1) parameters alike. It wants an output initialised with variance 1/fan_in^2:
a zero head does it, `mup_init` rescales others. Decay is not multiplied by
`mup`: lr * decay constant over width is what transfers (Wang & Aitchison
2024, arXiv 2405.13698). Growing head_dim also wants 1/d attention; growing
the number of heads wants nothing.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vitscale.core import multipliers
from vitscale.core import tree as tree_lib
from vitscale.core.axes import Axes
from vitscale.core.errors import UserError, nearest
from vitscale.core.schedule import schedule

# Every key of the config. b2: 0.999 remembers 1000 steps, more than many runs
# on this bench have, and is the known cause of late spikes at large batch.
DEFAULTS: dict[str, Any] = {
  "name": "adamw",
  "lr": 1e-3,
  "schedule": {"kind": "cosine", "warmup_percent": 5},
  "b1": 0.9,
  "b2": 0.99,
  "eps": 1e-8,
  "weight_decay": 0.05,
  "clip_norm": 1.0,
  "decay": (),  # [(regex, factor)], before the default by axes
  "lr_mult": (),  # [(regex, factor)], others 1
  "freeze": (),  # [regex]
  "layer_decay": None,  # 0.75: each layer learns that much less than the next
  "mup": None,  # {"base_width": 256} or {"base": abstract tree}
}

NAMES: tuple[str, ...] = ("adamw", "sgd", "lion", "adafactor")


class Info(NamedTuple):
  """What one parameter gets; see the formula of the module."""

  decay: float  # factor on weight_decay; 0: none
  scale: float | np.ndarray  # lr_mult x layer decay; array over layers
  mup: float
  init: float  # factor on the initial value that muP wants
  frozen: bool


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """`init`, `update` and, per parameter path, what it gets.

  update(grads, state, params, step, lr) -> (updates, state); step and lr may
  be traced. Frozen parameters have no state and get zero updates.
  """

  init: Callable[[Any], Any]
  update: Callable[..., tuple[Any, Any]]
  schedule: Callable[[Any], Any]
  lr: float
  info: dict[str, Info]
  config: dict[str, Any]

  def table(self) -> str:
    """One line per parameter, for the log."""
    rows = [("parameter", "lr x", "decay", "")]
    for path, i in self.info.items():
      rate = np.unique(np.asarray(i.scale, float) * i.mup)
      text = f"{rate[0]:.4g}" + (f"..{rate[-1]:.4g}" if rate.size > 1 else "")
      decay = f"{i.decay * self.config['weight_decay']:.4g}"
      rows.append(
        (path, "-", "-", "frozen") if i.frozen else (path, text, decay, "")
      )
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    return "\n".join(
      "  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
      for row in rows
    )


def make(
  config: Mapping[str, Any],
  abstract: Any,
  names: Any,
  *,
  total_steps: int,
) -> Optimizer:
  """Builds the optimizer of one player.

  Args:
    config: any of `DEFAULTS`.
    abstract: the parameters' shapes (unboxed).
    names: the same tree of `Axes`.
    total_steps: length of the schedule.

  Raises:
    UserError: unknown key or name, or a rule that fits no parameter.
  """
  config = settings(config)
  info = parameter_info(config, abstract, names)
  order = list(tree_lib.flatten(abstract))
  live = [path for path in order if not info[path].frozen]
  if not live:
    raise UserError("optim.freeze leaves no parameter to train")
  factor = schedule(config["schedule"], total_steps)
  direction = _direction(config)
  weight_decay, clip = config["weight_decay"], config["clip_norm"]

  def pick(tree):
    flat = tree_lib.flatten(tree)
    return {path: flat[path] for path in live}

  def init(params):
    return direction.init(tree_lib.unflatten(pick(params)))

  def update(grads, state, params, step, lr):
    flat, weights = pick(grads), pick(params)
    if clip:
      norm = _global_norm(flat.values())
      shrink = jnp.minimum(1.0, clip / jnp.maximum(norm, 1e-12))
      flat = {k: g * shrink.astype(g.dtype) for k, g in flat.items()}
    moves, state = direction.update(
      tree_lib.unflatten(flat), state, tree_lib.unflatten(weights)
    )
    rate = jnp.asarray(lr, jnp.float32) * factor(jnp.asarray(step))
    out = {}
    for path, move in tree_lib.flatten(moves).items():
      i, p = info[path], weights[path]
      move = move.astype(jnp.float32) * i.mup
      if i.decay * weight_decay:
        move = move + (i.decay * weight_decay) * p.astype(jnp.float32)
      scale = jnp.asarray(i.scale, jnp.float32)
      out[path] = (-rate * scale * move).astype(p.dtype)
    for path, p in tree_lib.flatten(params).items():
      if path not in out:
        out[path] = jnp.zeros_like(p)
    return tree_lib.like(params, out), state

  return Optimizer(init, update, factor, float(config["lr"]), info, config)


def _global_norm(grads) -> jax.Array:
  squares = [jnp.sum(jnp.square(g.astype(jnp.float32))) for g in grads]
  return jnp.sqrt(sum(squares))


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """`DEFAULTS` with the given keys replaced; unknown ones raise UserError."""
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  for key in config:
    if key not in DEFAULTS:
      raise UserError(f"optim.{key} unknown{nearest(key, DEFAULTS)}")
  out = {**DEFAULTS, **config}
  if out["name"] not in NAMES:
    raise UserError(
      f"optim.name = {out['name']!r}{nearest(out['name'], NAMES)}"
    )
  for key, low, high in (
    ("lr", 0, math.inf), ("weight_decay", 0, math.inf), ("b1", 0, 1),
    ("b2", 0, 1), ("eps", 0, math.inf), ("clip_norm", 0, math.inf),
  ):  # fmt: skip
    value = out[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key == "clip_norm" and value is None:
      continue
    if not number or not low <= value < high:
      raise UserError(
        f"optim.{key} = {value!r}: should be a number in [{low}, {high})"
      )
  if out["mup"] and out["name"] == "adafactor":
    raise UserError(
      "optim.mup: no known rule for adafactor; use adamw, lion or sgd"
    )
  return out


def _direction(config) -> optax.GradientTransformation:
  """The update before learning rate and decay, as optax builds it."""
  b1, b2 = config["b1"], config["b2"]
  if config["name"] == "sgd":
    return optax.trace(b1) if b1 else optax.identity()
  if config["name"] == "lion":
    return optax.scale_by_lion(b1, b2)
  if config["name"] == "adafactor":
    # Zhai et al. 2022 (arXiv 2106.04560): factored second moment, first
    # moment in bfloat16, no relative step size.
    return optax.chain(
      optax.scale_by_factored_rms(decay_rate=0.8),
      optax.clip_by_block_rms(1.0),
      optax.ema(b1, debias=False, accumulator_dtype=jnp.bfloat16),
    )
  return optax.scale_by_adam(b1, b2, config["eps"])


# ---------------------------------------------------------- who gets what


def parameter_info(
  config: Mapping[str, Any], abstract: Any, names: Any
) -> dict[str, Info]:
  """Path -> `Info`, every rule of the config applied and accounted for."""
  config = settings(config)
  shapes, named = tree_lib.flatten(abstract), tree_lib.flatten(names)
  tree_lib.check_same(named, shapes, "axis names", "parameters")

  def rules(key, pairs, default):
    what = f"optim.{key}"
    found = tree_lib.match(abstract, pairs, what=what, default=default)
    return tree_lib.flatten(found)

  decay = rules("decay", config["decay"], -1.0)
  scale = rules("lr_mult", config["lr_mult"], 1.0)
  frozen = rules("freeze", [(r, True) for r in config["freeze"]], False)
  layers = multipliers.layer_decay(config["layer_decay"], shapes, named)
  grown = multipliers.growth(config["mup"], shapes, named)
  out = {}
  for path, axes in named.items():
    r_in, r_out = grown[path]
    mup = r_out / r_in if config["name"] == "sgd" else 1 / r_in
    out[path] = Info(
      decay=float(decays(axes) if decay[path] < 0 else decay[path]),
      scale=scale[path] * layers[path],
      mup=mup,
      # Only the output grows its fan-in and not its fan-out.
      init=r_in**-0.5 if r_in != 1 and r_out == 1 else 1.0,
      frozen=frozen[path],
    )
  return out


def decays(axes: Axes) -> bool:
  """Whether a parameter decays by default: the matrices do.

  Norms, biases, position tables and registers declare no input side.
  """
  return axes.inputs > 0


def mup_init(params: Any, info: Mapping[str, Info]) -> Any:
  """Initial parameters with the output rescaled as muP wants."""
  flat = tree_lib.flatten(params)
  return tree_lib.like(
    params, {k: x * jnp.asarray(info[k].init, x.dtype) for k, x in flat.items()}
  )


# ------------------------------------------------------------------ helpers


def ema_update(ema: Any, params: Any, decay: float, step: Any) -> Any:
  """Moving average of parameters after `step` (0-based) updated them.

  Warm-up: the decay is at most (1 + step) / (10 + step), so that the average
  forgets the initial values within the first steps.
  """
  step = jnp.asarray(step, jnp.float32)
  keep = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(
    lambda e, p: e + (1 - keep).astype(e.dtype) * (p.astype(e.dtype) - e),
    ema,
    params,
  )


def accumulate(
  loss_and_grad: Callable[..., Any],
  params: Any,
  batch: Any,
  k: int,
  *,
  rngs: Any = None,
) -> Any:
  """`loss_and_grad(params, batch)` in `k` microbatches, one at a time.

  Args:
    loss_and_grad: returns any tree that is a mean over examples, such as
      `((loss, aux), grads)`; called with a third argument if `rngs` is given.
    params: parameters.
    batch: tree of arrays with the examples first.
    k: number of microbatches; divides the batch.
    rngs: tree of keys; microbatch i gets them folded with i.

  Returns:
    The mean over microbatches (float32 sums), in the dtypes of one call.
    Integer leaves are summed. Equal to the full batch for means over
    examples; not for batch statistics or losses between examples.

  Microbatch i takes rows i, i + k, ...: every device keeps its own rows.
  """
  sizes = {x.shape[0] for x in jax.tree.leaves(batch)}
  if len(sizes) != 1 or k < 1 or next(iter(sizes)) % k:
    raise UserError(
      f"accumulate: {k} microbatches do not divide the batch {sorted(sizes)}"
    )

  def call(i, part):
    if rngs is None:
      return loss_and_grad(params, part)
    fold = lambda key: jax.random.fold_in(key, i)
    return loss_and_grad(params, part, jax.tree.map(fold, rngs))

  if k == 1:
    return call(0, batch)
  parts = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(x.shape[0] // k, k, *x.shape[1:]), 1, 0),
    batch,
  )
  like = jax.eval_shape(call, 0, jax.tree.map(lambda x: x[0], parts))
  is_float = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  wide = lambda x: jnp.promote_types(x.dtype, jnp.float32)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, wide(x) if is_float(x) else x.dtype), like
  )

  def add(total, item):
    out = call(*item)
    return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, out), None

  total, _ = jax.lax.scan(add, zeros, (jnp.arange(k), parts))
  return jax.tree.map(
    lambda t, x: (t / k).astype(x.dtype) if is_float(x) else t, total, like
  )
