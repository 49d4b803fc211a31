"""What becomes of a batch whose loss or gradient is not finite.

Off (`guard.max_skips = 0`, the default): the run stops with a message at the
next log row or checkpoint, and no such state is saved.

On: the batch is dropped. Parameters, optimizer, averages, other collections,
metrics and the step number stay as they were, selected and never multiplied
(NaN x 0 is NaN); only the data go on, so that the run equals one whose data
lack that batch. `max_skips` drops in a row freeze the state until the loop
sees it and rolls back to the last checkpoint, with the data moved past the
last bad batch; after `max_rollbacks` of them the run stops as above.

No checkpoint is written in the middle of such a row, so the last one is from
before the trouble began.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError

State = dict[str, Any]
DEFAULTS: dict[str, int] = {"max_skips": 0, "max_rollbacks": 1}
RECENT = 8  # numbers of the last dropped batches that the state remembers


def settings(config: Mapping[str, Any]) -> dict[str, int]:
  """The group `guard` of a config, complete.

  Raises:
    UserError: not an integer of 0 or more.
  """
  values = {name: config.get(name, value) for name, value in DEFAULTS.items()}
  for name, value in values.items():
    if type(value) is not int or value < 0:
      raise UserError(f"guard.{name} = {value!r}: should be 0 or more")
  return values


def arm(
  init: Callable[..., State], step: Callable[..., State], max_skips: int
) -> tuple[Callable[..., State], Callable[..., State]]:
  """`init` and `step` with the guard in their state; the same two when off.

  The state gains `guard`: `skips` (batches dropped so far), `streak` (in a
  row), `tripped` (data step at which the streak was too long, else -1),
  `rollbacks`, and `recent` (data steps of the last drops, a ring).
  """
  if not max_skips:
    return init, step

  def armed_init(seed: jax.Array) -> State:
    zero = jnp.zeros((), jnp.int32)
    return {
      **init(seed),
      "guard": {
        "skips": zero, "streak": zero, "tripped": zero - 1, "rollbacks": zero,
        "recent": jnp.full(RECENT, -1, jnp.int32),
      },
    }  # fmt: skip

  def armed_step(state: State, *args: Any, **kwargs: Any) -> State:
    rest = {**state}
    guard, now = rest.pop("guard"), state["data_step"]
    new = step(rest, *args, **kwargs)
    bad, frozen = new["first_bad"] >= 0, guard["tripped"] >= 0
    streak = guard["streak"] + 1
    dropped = {
      **rest,
      "data_step": now + 1,
      "guard": {
        **guard,
        "skips": guard["skips"] + 1,
        "streak": streak,
        "tripped": jnp.where(streak >= max_skips, now, -1),
        "recent": guard["recent"].at[guard["skips"] % RECENT].set(now),
      },
    }
    applied = {**new, "guard": {**guard, "streak": jnp.zeros_like(streak)}}
    return jax.tree.map(
      lambda old, drop, apply: jnp.where(
        frozen, old, jnp.where(bad, drop, apply)
      ),
      state,
      dropped,
      applied,
    )

  return armed_init, armed_step


def read(state: State) -> dict[str, Any]:
  """The guard's counters on the host; zeros when it is off."""
  if "guard" not in state:
    return {"skips": 0, "streak": 0, "tripped": -1, "rollbacks": 0}
  return {
    k: np.asarray(v) if v.ndim else int(v)
    for k, v in jax.device_get(state["guard"]).items()
  }


def notice(counts: Mapping[str, Any], before: int, step: int) -> dict[str, Any]:
  """What a ledger says of the batches dropped since the count was `before`."""
  new = counts["skips"] - before
  first = counts["skips"] - min(new, RECENT)
  recent = [
    int(counts["recent"][i % RECENT]) for i in range(first, counts["skips"])
  ]
  shown = ", ".join(map(str, recent))
  text = (
    f"skipped {new} of the batches up to here: loss or gradient not finite"
    f" (batch {'..., ' * (new > RECENT)}{shown}; {step} updates so far)"
  )
  return {"text": text, "event": "skip", "batches": recent, "count": new}


def rolled_back(restored: State, counts: Mapping[str, Any]) -> State:
  """A restored state whose data go on behind the batch that tripped."""
  values = {
    **counts,
    "streak": 0,
    "tripped": -1,
    "rollbacks": counts["rollbacks"] + 1,
  }
  put = lambda value, like: jax.device_put(
    np.asarray(value, np.int32), like.sharding
  )
  return {
    **restored,
    "data_step": put(counts["tripped"] + 1, restored["data_step"]),
    "guard": {k: put(values[k], x) for k, x in restored["guard"].items()},
  }
