"""Has a training curve flattened? Two criteria, and which one to trust.

`flattened` looks inside one run. It is cheap and, under a cosine or linear
decay, wrong in both directions: the loss drops while the rate falls and stands
still once the rate is zero, whether or not more training would help. Use it
for constant rates.

`gain_from_doubling` compares the *ends* of two runs of T/2 and T steps, each
with its own complete schedule. It asks the question itself (what would the
same again have bought?) and is the criterion the studies state.
"""

import dataclasses

import numpy as np

from vitscale.core.errors import UserError
from vitscale.laws import intervals


@dataclasses.dataclass(frozen=True)
class Gain:
  """Relative loss bought by doubling the steps.

  Attributes:
    value: 1 - loss_full / loss_half; positive when longer is better.
    ci: interval over seeds (t on logs, turned back); NaN with one seed.
    flattened: True when the whole interval lies below the tolerance, None
      when it lies across (undecided), else False. One seed has no interval:
      there the value decides.
    tolerance: the criterion used.
    n: pairs of runs.
  """

  value: float
  ci: tuple[float, float]
  flattened: bool | None
  tolerance: float
  n: int


def gain_from_doubling(
  loss_half: np.ndarray,
  loss_full: np.ndarray,
  *,
  tolerance: float = 0.02,
  paired: bool = True,
  level: float = 0.95,
) -> Gain:
  """Compares final held-out losses of T/2-step and T-step runs.

  Args:
    loss_half, loss_full: one loss per seed, complete schedules both.
    tolerance: relative gain below which the curve counts as flat.
    paired: whether entry i of both used the same seed and data order.
  """
  half, full = (
    np.atleast_1d(np.asarray(v, float)) for v in (loss_half, loss_full)
  )
  for name, v in (("loss_half", half), ("loss_full", full)):
    bad = np.flatnonzero(~(np.isfinite(v) & (v > 0)))
    if bad.size:
      raise UserError(
        f"{name}: entry {bad[0]} is {v[bad[0]]}, losses must be positive"
      )
  d = intervals.difference(
    np.log(half), np.log(full), paired=paired, level=level
  )
  value = -np.expm1(-d.mean)
  low, high = (float(-np.expm1(-v)) for v in d.ci)
  flat: bool | None = bool(value < tolerance)
  if np.isfinite(low):
    flat = True if high < tolerance else False if low >= tolerance else None
  return Gain(float(value), (low, high), flat, tolerance, d.n)


def flattened(
  steps: np.ndarray,
  values: np.ndarray,
  *,
  tolerance: float = 0.02,
  window: float = 0.5,
) -> tuple[bool, float]:
  """Whether one curve has stopped falling, at a constant learning rate.

  The rate is the relative improvement per doubling of steps, from a straight
  line through `ln loss` against `log2 steps` over the last `window` of the
  run (.5: its last doubling), so that noise of single evaluations averages
  out. Negative: the loss is rising (which counts as flat).

  Args:
    steps: increasing, positive.
    values: held-out loss at those steps.
    tolerance: improvement per doubling below which it counts as flat.
    window: share of the steps that is looked at.

  Returns:
    (flat, rate).
  """
  steps, values = (np.asarray(v, float) for v in (steps, values))
  if not 0 < window < 1:
    raise UserError(f"window is {window}, must lie between 0 and 1")
  if steps.shape != values.shape or steps.ndim != 1:
    raise UserError(
      f"steps {steps.shape} and values {values.shape} must be equal 1-D shapes"
    )
  bad = np.flatnonzero(~(np.isfinite(values) & (values > 0) & (steps > 0)))
  if bad.size:
    i = bad[0]
    raise UserError(
      f"row {i}: step {steps[i]:g}, value {values[i]}; both must be positive"
    )
  if (np.diff(steps) <= 0).any():
    raise UserError("steps must increase")
  late = steps >= (1 - window) * steps[-1] if steps.size else steps > 0
  if late.sum() < 3:
    raise UserError(
      f"{int(late.sum())} evaluations in the last {window:.0%} of the steps, "
      "3 are needed: evaluate more often or widen the window"
    )
  slope = np.polyfit(np.log2(steps[late]), np.log(values[late]), 1)[0]
  rate = float(-np.expm1(slope))
  return rate < tolerance, rate
