"""From noise to data: Euler and Heun for flow, DDIM and ancestors for ddpm.

`integrate` is the solver over any prediction; `generate` puts a model and its
guidance in, as one compiled program with a loop over the steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.sampling import process as process_lib
from vitscale.sampling.process import STEPS, Process

SAMPLERS: dict[str, str] = {
  "euler": "flow", "heun": "flow", "ddim": "ddpm", "ancestral": "ddpm"
}  # fmt: skip

Predict = Callable[[jax.Array, jax.Array], Any]


def integrate(
  predict: Predict,
  noise: jax.Array,
  process: Process,
  *,
  sampler: str,
  steps: int,
  key: jax.Array | None = None,
) -> jax.Array:
  """Noise -> data, along the process's ordinary differential equation.

    euler   steps calls, error of order 1 / steps
    heun    2 steps - 1 calls, of order 1 / steps^2; the last step is Euler's
            (as in 2206.00364, algorithm 1)
    ddim    steps calls (2010.02502, eta = 0), from the last step of training
            on, evenly spaced
    ancestral   as ddim, but each step back is drawn (2006.11239, algorithm
            2), with the variance that a model says, or else that of a step
            forward

  Args:
    predict: `(x, t)`, x (...) and a scalar time -> what the process predicts;
      for ancestral, if it learned a variance, a pair with that.
    noise: (...) float32, standard normal.
    process: as in training; its shift spaces the times of flow.
    sampler: one of SAMPLERS.
    steps: how many.
    key: of what ancestral draws.

  Raises:
    UserError: an unknown sampler, one of the other process, or bad `steps`.
  """
  check(process, sampler, steps)
  if sampler == "ancestral":
    return _ancestral(predict, noise, process, steps, key)
  if sampler == "ddim":
    return _ddim(predict, noise, process, steps)
  t = np.linspace(1, 0, steps + 1)
  t = process_lib.shifted(t, process.shift).astype(np.float32)

  def euler(x, now, then):
    v = predict(x, now)
    return x + (then - now) * v, v

  def step(x, pair):
    now, then = pair
    y, v = euler(x, now, then)
    if sampler == "heun":
      y = x + (then - now) * (v + predict(y, then)) / 2
    return y, None

  last = 1 if sampler == "heun" else 0
  inner = slice(0, steps - last), slice(1, steps + 1 - last)
  x, _ = jax.lax.scan(step, noise, tuple(jnp.asarray(t[s]) for s in inner))
  if last:
    x, _ = euler(x, jnp.asarray(t[-2]), jnp.asarray(t[-1]))
  return x


def check(process: Process, sampler: str, steps: int) -> None:
  """Raises UserError, see `integrate`."""
  if sampler not in SAMPLERS:
    raise UserError(f"sampler {sampler!r}{nearest(sampler, SAMPLERS)}")
  if SAMPLERS[sampler] != process.kind:
    fits = [name for name, kind in SAMPLERS.items() if kind == process.kind]
    raise UserError(
      f"sampler {sampler!r} is of {SAMPLERS[sampler]}, the process is"
      f" {process.kind}: use {' or '.join(map(repr, fits))}"
    )
  most = STEPS if process.kind == "ddpm" else None
  if type(steps) is not int or steps < 1 or (most and steps > most):
    raise UserError(
      f"steps={steps!r}: should be 1 {f'to {most}' if most else 'or more'}"
    )


def _visited(steps: int) -> np.ndarray:
  """(steps,) of training's, from the last one down."""
  return np.rint(np.linspace(STEPS - 1, 0, steps)).astype(int)


def _ddim(predict, noise, process, steps):
  at = _visited(steps)
  known = process_lib.alphas_bar(process.schedule)[at]
  then = np.append(known[1:], 1.0)  # no noise at the end
  table = [at / STEPS, known**0.5, (1 - known) ** 0.5]
  table += [then**0.5, (1 - then) ** 0.5]

  def step(x, row):
    t, alpha, sigma, next_alpha, next_sigma = row
    eps = predict(x, t)
    data = (x - sigma * eps) / alpha
    return next_alpha * data + next_sigma * eps, None

  rows = tuple(jnp.asarray(column, jnp.float32) for column in table)
  return jax.lax.scan(step, noise, rows)[0]


def _ancestral(predict, noise, process, steps, key):
  at = _visited(steps)
  known = process_lib.alphas_bar(process.schedule)[at]
  tables = process_lib.back(known[::-1])
  names = ("data", "noised", "low", "high")
  table = [at / STEPS, known**0.5, (1 - known) ** 0.5]
  table += [tables[name][::-1] for name in names]
  last = np.arange(steps) == steps - 1

  def step(x, row):
    t, alpha, sigma, of_data, of_noised, low, high, key, last = row
    said = predict(x, t)
    eps, log_variance = said, high
    if isinstance(said, tuple):
      eps, share = said
      log_variance = process_lib.variance(share, low, high)
    data = (x - sigma * eps) / alpha
    mean = of_data * data + of_noised * x
    drawn = jax.random.normal(key, x.shape) * jnp.exp(log_variance / 2)
    return jnp.where(last, data, mean + drawn), None

  rows = [jnp.asarray(column, jnp.float32) for column in table]
  rows += [jax.random.split(key, steps), jnp.asarray(last)]
  return jax.lax.scan(step, noise, tuple(rows))[0]


# ------------------------------------------------------------------- models


def generate(
  model: nn.Module,
  variables: Any,
  noise: jax.Array,
  label: Any = None,
  *,
  process: Process,
  sampler: str,
  steps: int = 50,
  guidance: float | None = None,
  interval: tuple[float, float] = (0.0, 1.0),
  key: jax.Array | None = None,
) -> jax.Array:
  """Samples of a model.

  With guidance w (2207.12598) the prediction is that without class + w (that
  with class - that without), on every channel; another w or interval compiles
  nothing anew. The model must have seen no class in training
  (`task.drop_label`).

  Args:
    model: takes (x, time, label) as `vitscale.models.dit` does.
    variables: its variables.
    noise: (b, h, w, c) standard normal.
    label: (b,) classes; None for no class.
    process, sampler, steps: see `integrate`.
    guidance: w; 1 changes nothing, None asks the model once a call.
    interval: times (from, to), both included, at which guidance acts
      (2404.07724); outside the model is asked once.
    key: of what the sampler draws; default from a fixed seed.

  Returns:
    (b, h, w, c) float32, normalised as the training data are.

  Raises:
    UserError: see `integrate`; guidance of a model without classes or without
      labels; a label that does not exist; an interval that is none.
  """
  check(process, sampler, steps)
  classes = model.num_classes
  if guidance is not None and not classes:
    raise UserError(
      f"guidance={guidance}: the model has no classes to be guided to; leave"
      " it out"
    )
  if guidance is not None and label is None:
    raise UserError(f"guidance={guidance} needs labels, one per sample")
  if not 0 <= interval[0] <= interval[1] <= 1:
    raise UserError(
      f"interval={tuple(interval)}: should be two times in 0..1, the smaller"
      " first"
    )
  if label is not None:
    label = np.asarray(label, np.int32)
    wrong = label[(label < 0) | (label > classes)]
    if label.shape != noise.shape[:1] or len(wrong):
      said = f"label {wrong[0]}" if len(wrong) else f"{label.size} labels"
      raise UserError(
        f"{said} for {len(noise)} samples: should be one of 0..{classes} each,"
        f" {classes} for no class"
      )
  asked = None
  if guidance is not None:
    asked = np.float32([guidance, *interval])
  if sampler == "ancestral" and key is None:
    key = jax.random.key(0)
  return _generate(
    variables, noise, label, asked, key,
    model=model, process=process, sampler=sampler, steps=steps,
  )  # fmt: skip


@functools.partial(
  jax.jit, static_argnames=("model", "process", "sampler", "steps")
)
def _generate(
  variables, noise, label, guidance, key, *, model, process, sampler, steps
):
  learned = sampler == "ancestral" and getattr(model, "learn_sigma", False)
  predict = functools.partial(
    guided, model, variables, label, guidance, learned=learned
  )
  return integrate(
    predict, noise, process, sampler=sampler, steps=steps, key=key
  )


def guided(
  model: nn.Module,
  variables: Any,
  label: jax.Array | None,
  guidance: jax.Array | None,
  x: jax.Array,
  t: jax.Array,
  *,
  learned: bool = False,
) -> Any:
  """The prediction at a scalar time, see `generate`.

  Args:
    model, variables, label: see `generate`.
    guidance: (3,) w and the interval, or None.
    x: (b, h, w, c).
    t: scalar.
    learned: gives a pair, with the variance that the model says of the class.
  """

  def ask(x, label):
    y, out = model.apply(variables, x, jnp.full(len(x), t), label)
    return (y, out["variance"]) if learned else (y,)

  def both(x):
    none = jnp.full_like(label, model.num_classes)
    twice = jnp.concatenate([x, x]), jnp.concatenate([label, none])
    made, *rest = ask(*twice)
    of_class, of_none = jnp.split(made, 2)
    made = of_none + guidance[0] * (of_class - of_none)
    return made, *(more[: len(x)] for more in rest)

  if guidance is None:
    said = ask(x, label)
  else:
    inside = (guidance[1] <= t) & (t <= guidance[2])
    said = jax.lax.cond(inside, both, lambda x: ask(x, label), x)
  return said if learned else said[0]
