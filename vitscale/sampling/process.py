"""How data become noise: x_t = alpha(t) x + sigma(t) noise, t from 0 to 1.

    flow   alpha = 1 - t, sigma = t; predicted is the velocity, noise - x
           (flow matching along lines, 2210.02747, with time as in 2403.03206)
    ddpm   alpha^2 + sigma^2 = 1 in STEPS steps; predicted is the noise
           (2006.11239), on a `linear` or a `cosine` schedule (2102.09672)

A time of ddpm is step / STEPS, so that a model reads both alike. A model that
learns the variance of ddpm's steps back is trained on `bound` for it. Pure
functions of a `Process`, for training and for sampling.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError, nearest

KINDS = ("flow", "ddpm")
SCHEDULES = ("linear", "cosine")
STEPS = 1000  # of ddpm


@dataclasses.dataclass(frozen=True)
class Process:
  """What noises.

  Attributes:
    kind: one of KINDS.
    schedule: of ddpm, one of SCHEDULES.
    shift: of flow, s of t -> s t / (1 + (s - 1) t): above 1 more of the times
      are noisy, see `shift_of`.
  """

  kind: str = "flow"
  schedule: str = "linear"
  shift: float = 1.0

  def __post_init__(self):
    for name, value, known in (
      ("process", self.kind, KINDS),
      ("schedule", self.schedule, SCHEDULES),
    ):
      if value not in known:
        raise UserError(f"{name} {value!r}{nearest(value, known)}")
    if type(self.shift) not in (int, float) or not 0 < self.shift < math.inf:
      raise UserError(f"shift={self.shift!r}: should be above 0")
    if self.kind == "ddpm" and self.shift != 1:
      raise UserError(f"shift={self.shift}: ddpm has none, only flow")
    if self.kind == "flow" and self.schedule != "linear":
      raise UserError(f"schedule {self.schedule!r}: flow has one, 'linear'")


def shift_of(shape: tuple[int, ...], base: int = 4096) -> float:
  """sqrt(numbers of an example / base), the shift of 2510.11690.

  Data of more numbers that depend on each other need more noise to be as
  uncertain (2403.03206, section 5.3.2).
  """
  return math.sqrt(math.prod(shape) / base)


def shifted(t: jax.Array, shift: float) -> jax.Array:
  """Times (...) in 0..1, moved towards 1 by a shift above 1."""
  return shift * t / (1 + (shift - 1) * t)


@functools.cache
def alphas_bar(schedule: str) -> np.ndarray:
  """(STEPS,) float64, alpha^2 after each step of ddpm."""
  if schedule == "linear":
    beta = np.linspace(1e-4, 0.02, STEPS)
  else:
    level = np.cos((np.arange(STEPS + 1) / STEPS + 0.008) / 1.008 * np.pi / 2)
    beta = np.minimum(1 - level[1:] ** 2 / level[:-1] ** 2, 0.999)
  return np.cumprod(1 - beta)


def levels(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
  """alpha and sigma (...) float32 at times (...)."""
  if process.kind == "flow":
    return 1 - t, t
  known = alphas_bar(process.schedule)
  at = jnp.rint(t * STEPS).astype(jnp.int32)
  alpha = jnp.asarray(np.sqrt(known), jnp.float32)
  sigma = jnp.asarray(np.sqrt(1 - known), jnp.float32)
  return alpha[at], sigma[at]


def times(process: Process, u: jax.Array) -> jax.Array:
  """What times uniform numbers u in [0, 1) stand for in training."""
  if process.kind == "flow":
    return shifted(u, process.shift)
  return jnp.minimum(jnp.floor(u * STEPS), STEPS - 1) / STEPS


def noised(
  process: Process, x: jax.Array, noise: jax.Array, t: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """What a model is shown, and what it has to predict.

  Args:
    process: the process.
    x, noise: (b, ...).
    t: times (b,).
  """
  wide = (len(t),) + (1,) * (x.ndim - 1)
  alpha, sigma = (level.reshape(wide) for level in levels(process, t))
  target = noise - x if process.kind == "flow" else noise
  return alpha * x + sigma * noise, target


# ---------------------------------------------------------------- steps back


def back(alpha_bar: np.ndarray) -> dict[str, np.ndarray]:
  """What a step of ddpm back to the one before is made of, by step.

  x_(t-1) given x_t and the data x is normal (2006.11239, eq. 6 and 7), of mean
  `data` x + `noised` x_t and of log variance `low`; `high` is that of a step
  forward, the other end of what a model may learn (2102.09672, section 3.1).

  Args:
    alpha_bar: (n,) alpha^2 after each step, or after those that are visited.

  Returns:
    Four arrays (n,) float64. The first step back has no variance; its `low` is
    the second's.
  """
  before = np.append(1.0, alpha_bar[:-1])
  beta = 1 - alpha_bar / before
  left = 1 - alpha_bar
  low = beta * (1 - before) / left
  low[0] = low[1] if len(low) > 1 else beta[0]
  return {
    "data": np.sqrt(before) * beta / left,
    "noised": np.sqrt(1 - beta) * (1 - before) / left,
    "low": np.log(low),
    "high": np.log(beta),
  }


def variance(said: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
  """Log variance that a model's -1..1 stands for, between `low` and `high`."""
  share = (said + 1) / 2
  return share * high + (1 - share) * low


def bound(
  process: Process,
  x: jax.Array,
  shown: jax.Array,
  t: jax.Array,
  noise: jax.Array,
  said: jax.Array,
) -> jax.Array:
  """What a step back loses of the variational bound, in bits a number (b,).

  The divergence of the true step back from the model's (2102.09672, section
  2.2). It trains the variance alone: `noise` is held fixed. The step to the
  data, one of STEPS, has no density here and counts 0.

  Args:
    process: ddpm.
    x: data (b, ...).
    shown: noised, as `noised` gives it.
    t: times (b,).
    noise: predicted.
    said: `out["variance"]` of the model, about -1..1.
  """
  at = jnp.rint(t * STEPS).astype(jnp.int32)
  wide = (len(t),) + (1,) * (x.ndim - 1)
  tables = back(alphas_bar(process.schedule))
  of = {
    k: jnp.asarray(v, jnp.float32)[at].reshape(wide) for k, v in tables.items()
  }
  alpha, sigma = (level.reshape(wide) for level in levels(process, t))
  data = (shown - sigma * jax.lax.stop_gradient(noise)) / alpha
  apart = of["data"] * (data - x)
  mine = variance(said, of["low"], of["high"])
  far = of["low"] - mine
  each = 0.5 * (jnp.exp(far) - far - 1 + jnp.square(apart) * jnp.exp(-mine))
  each = each.mean(tuple(range(1, x.ndim))) / math.log(2)
  return jnp.where(at == 0, 0.0, each)
