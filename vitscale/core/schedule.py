"""Learning-rate schedules: step -> factor in 0..1 on the base rate."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError, nearest

_KINDS: dict[str, tuple[str, ...]] = {
  "constant": ("cooldown",),
  "cosine": (),
  "linear": (),
  "rsqrt": ("cooldown", "timescale"),
  "wsd": ("cooldown",),
}


def schedule(
  config: Mapping[str, Any], total_steps: int
) -> Callable[[Any], Any]:
  """step -> factor on the learning rate, in 0..1; traceable, vectorised.

  Config keys: `kind`; `warmup_steps` or `warmup_percent` of the run (linear,
  the first step is not wasted on 0); `end`, the factor at the last step;
  `cooldown_steps` or `cooldown_percent` of constant, rsqrt (linear) and wsd
  (1 - sqrt, over 20 % unless said; Hägele et al. 2024, arXiv 2405.18392);
  `timescale` of rsqrt, by default the warm-up's length: the factor is
  1 / sqrt(1 + steps after warm-up / timescale).

  Raises:
    UserError: unknown kind or key, or phases longer than the run.
  """
  config = dict(config)
  kind = config.pop("kind", "cosine")
  if kind not in _KINDS:
    raise UserError(f"optim.schedule.kind = {kind!r}{nearest(kind, _KINDS)}")
  if total_steps < 1:
    raise UserError(
      f"optim.schedule: total_steps = {total_steps}, want 1 or more"
    )
  warmup = _steps(config, "warmup", total_steps, 0)
  cooldown = 0
  if "cooldown" in _KINDS[kind]:
    usual = total_steps // 5 if kind == "wsd" else 0
    cooldown = _steps(config, "cooldown", total_steps, usual)
  end = float(config.pop("end", 0.0))
  timescale = 1.0
  if "timescale" in _KINDS[kind]:
    timescale = float(config.pop("timescale", max(warmup, 1)))
  if config:
    known = ["kind", "warmup_steps", "warmup_percent", "end"]
    for name in _KINDS[kind]:
      timed = [f"{name}_steps", f"{name}_percent"]
      known += timed if name == "cooldown" else [name]
    key = sorted(config)[0]
    raise UserError(
      f"optim.schedule.{key} unknown for {kind!r}{nearest(key, known)}"
    )
  if warmup + cooldown > total_steps:
    raise UserError(
      f"optim.schedule: warm-up {warmup} + cool-down {cooldown} steps exceed"
      f" the {total_steps} of the run"
    )

  def factor(step):
    xp = jnp if isinstance(step, jax.Array) else np
    t = xp.asarray(step).astype(xp.float32)
    after = xp.maximum(t - warmup, 0.0)
    done = xp.clip(after / max(total_steps - warmup, 1), 0.0, 1.0)
    if kind == "cosine":
      y = end + (1 - end) * 0.5 * (1 + xp.cos(np.pi * done))
    elif kind == "linear":
      y = 1 - (1 - end) * done
    elif kind == "rsqrt":
      y = 1 / xp.sqrt(1 + after / timescale)
    else:
      y = xp.ones_like(t)
    if cooldown:
      left = (total_steps - t) / cooldown
      cooled = xp.clip(1 - left, 0.0, 1.0)
      fall = 1 - xp.sqrt(cooled) if kind == "wsd" else 1 - cooled
      y = y * (end + (1 - end) * fall)
    return y * xp.minimum(1.0, (t + 1) / warmup) if warmup else y

  return factor


def _steps(config, name, total, default) -> int:
  steps, percent = f"{name}_steps", f"{name}_percent"
  if steps in config and percent in config:
    raise UserError(f"optim.schedule: give {steps} or {percent}, not both")
  if percent in config:
    value = float(config.pop(percent))
    if not 0 <= value <= 100:
      raise UserError(f"optim.schedule.{percent} = {value}, want 0..100")
    return round(total * value / 100)
  value = config.pop(steps, default)
  if value < 0 or value != int(value):
    raise UserError(f"optim.schedule.{steps} = {value}, want a number of steps")
  return int(value)
