"""Where a fresh run's state comes from: its seed, or another run's checkpoint.

    config.init = {"from": "out/plain"}                      # fine-tuning
    config.init = {"from": "out/plain", "skip": "head/.*"}   # other classes
    config.init = {"from": "out/plain", "rewire": ("heads", "mlp")}
    config.init = {"from": "out/small", "how": "append", "optimizer": "carry"}

What the parent has and this run doesn't, or the other way round, is an error
unless `skip` names it. Step and data start at zero, the optimizer anew unless
it is carried. A resumed run needs no parent. `how` says what happens to a
parent of other sizes (elastic/grow.py):

    same          nothing, sizes are equal
    resize        another patch or image: patch kernels PI-resized (FlexiViT,
                  2212.08013), position tables resampled
    append        new units that nothing listens to yet (TokenFormer)
    net2net       copies of hidden units and heads, drawn at random
    hypercloning  every width a multiple, all entries copied in turn

A grown model computes what its parent did, but for options that no parameter
shows: Pattention wants a `scale_tokens` that stays under `append` and is not
for `net2net`, `hypercloning` wants learned positions (fixed ones are others in
another width).
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale import models
from vitscale.bench import Bench
from vitscale.core import axes as axes_lib
from vitscale.core import distributed, tree
from vitscale.core.axes import AxisError
from vitscale.core.config import Reader
from vitscale.core.errors import UserError, nearest
from vitscale.elastic import grow, importance
from vitscale.parent import Parent, resizes

State = dict[str, Any]
OPTIMIZER = ("fresh", "carry")
REWIRED = ("heads", "mlp")
IMAGES, TOLERANCE = 8, 1e-3  # of the check that growing kept the function


@dataclasses.dataclass(frozen=True)
class WarmStart:
  """A config's `init`.

  Attributes:
    path: of the parent: a workdir or a step folder.
    how: one of METHODS.
    skip: regex of parameters that start from the seed.
    optimizer: "carry" takes the parent's moments along.
    rewire: axes whose most important units come first (elastic/importance.py),
      for nested fine-tuning of a plain run.
  """

  path: str
  how: str = "same"
  skip: str = ""
  optimizer: str = "fresh"
  rewire: tuple[str, ...] = ()


def of(config: Mapping[str, Any]) -> WarmStart | None:
  """The WarmStart a config asks for.

  Raises:
    UserError: no `from`, or a value that isn't known.
  """
  if not config.get("init"):
    return None
  group = dict(config["init"])
  if not isinstance(group.get("from"), str):
    raise UserError("config.init wants 'from': the workdir of a run")
  fields = [field.name for field in dataclasses.fields(WarmStart)]
  made = {"path": group.pop("from")}
  for key, value in group.items():
    if key not in fields or key == "path":
      raise UserError(f"unknown config key 'init.{key}'{nearest(key, fields)}")
    made[key] = tuple(value) if key == "rewire" else value
  start = WarmStart(**made)
  for key, known in (("how", METHODS), ("optimizer", OPTIMIZER)):
    value = getattr(start, key)
    if not isinstance(value, str) or value not in known:
      raise UserError(f"init.{key} {value!r}{nearest(value, known)}")
  try:
    re.compile(start.skip)
  except (re.error, TypeError) as error:
    raise UserError(f"init.skip={start.skip!r}: {error}") from error
  if start.rewire and start.optimizer == "carry":
    raise UserError(
      "init.rewire puts units in another order: use init.optimizer=fresh"
    )
  for axis in start.rewire:
    if axis not in REWIRED:
      raise UserError(f"init.rewire {axis!r}{nearest(axis, REWIRED)}")
  if start.skip and start.how in GROWTHS:
    raise UserError(f"init.skip goes with init.how=same, not {start.how}")
  if start.how == "resize" and start.optimizer == "carry":
    raise UserError("init.how=resize has no moments to carry")
  if start.skip and start.optimizer == "carry":
    raise UserError("init.skip leaves the optimizer no moments to carry")
  return start


def parents(config: Mapping[str, Any]) -> dict[str, str]:
  """What a config reads weights of: config key -> path."""
  found = {}
  if start := of(config):
    found["init.from"] = start.path
  task, key = dict(config.get("task") or {}), "task"
  while task:
    if "teacher" in task:
      found[f"{key}.teacher"] = task["teacher"]
    task, key = dict(task.get("of") or {}), f"{key}.of"
  return found


def facts(config: Mapping[str, Any]) -> dict[str, Any] | None:
  """What run.json says of the parents; None where one isn't here any more."""
  try:
    return {k: Parent(path).facts for k, path in parents(config).items()}
  except UserError:
    return None


def begin(bench: Bench) -> State:
  """The state before the first step.

  Raises:
    UserError: a parent that isn't there or doesn't fit.
  """
  config = bench.config
  state = dict(bench.init(np.uint32(config["seed"])))
  for branch, parent in getattr(bench.task, "teachers", {}).items():
    abstract = bench.abstract["mutable"][branch]
    # Looked at anew: a bench outlives a teacher that trains on.
    again = type(parent)(parent.path)
    read = tree.like(abstract, again.read(abstract))
    state["mutable"] = {**state["mutable"], branch: read}
  start = of(config)
  if start is None:
    return state
  parent = Parent(start.path)
  try:
    take = grown if start.how in GROWTHS else same
    take(bench, state, parent, start)
  except AxisError as error:
    raise UserError(f"init.how={start.how}: {error}") from error
  if state["ema"]:
    state["ema"] = jax.tree.map(jnp.array, state["params"])
  if start.rewire:
    if distributed.process_count() > 1:
      raise UserError("init.rewire runs in one process: start the run there")
    state = dict(importance.rewired(bench, state, start.rewire))
    for name in ("params", "ema"):
      places = jax.tree.map(lambda x: x.sharding, bench.abstract[name])
      state[name] = jax.device_put(state[name], places)
  return state


def same(bench: Bench, state: State, parent: Parent, start: WarmStart) -> None:
  """Fills a state with the parent's parameters, but for those skipped.

  With `how` resize, of other patches and positions.

  Collections (statistics, codebooks) come along where both have them.
  """
  drawn = tree.flatten(state["params"])
  both = set(bench.abstract["mutable"]) & parent.collections
  abstract, change = bench.abstract["params"], {}
  if start.how == "resize":
    abstract, change = resizes(bench, parent)
  found = parent.read(abstract, skip=start.skip, beside=both)
  found |= {k: fn(found[k]) for k, fn in change.items() if k in found}
  for name in sorted(both):
    branch, shapes = f"mutable/{name}", bench.abstract["mutable"][name]
    read = tree.like(shapes, parent.read(shapes, branch))
    state["mutable"] = {**state["mutable"], name: read}
  if start.skip:
    _tell_skipped(parent, drawn, found)
  state["params"] = tree.like(state["params"], drawn | found)
  if start.optimizer == "carry":
    state["opt"] = _moments(parent, bench.abstract["opt"])


def _tell_skipped(parent: Parent, drawn: State, found: State) -> None:
  """Says what `skip` left out on either side: nobody should have to guess."""
  have = tree.flatten(parent.shapes())
  some = lambda paths: ", ".join(sorted(paths)) or "nothing"
  print(
    f"init: {len(found)} parameters of {parent.folder}; from the seed:"
    f" {some(set(drawn) - set(found))}; left behind:"
    f" {some(set(have) - set(found))}",
    file=sys.stderr,
  )


def grown(bench: Bench, state: State, parent: Parent, start: WarmStart) -> None:
  """Fills a state with the parent grown, and says if that changed it."""
  shapes = parent.shapes()
  # On the host, so that a compiled growth places them over its own mesh.
  small = jax.device_get(tree.like(shapes, parent.read(shapes)))
  params, moments = GROWTHS[start.how](bench, small)
  state["params"] = _placed(bench, "params", params)(state["params"], small)
  if start.optimizer == "carry":
    old = _moments(parent, parent.shapes("opt"), bench.abstract["opt"])
    old = jax.device_get(old)
    state["opt"] = _placed(bench, "opt", moments)(state["opt"], old)
  check_function(bench, state, parent, small)


def check_function(
  bench: Bench, state: State, parent: Parent, params: Any
) -> float:
  """How far growing changed the logits; above TOLERANCE it is a warning.

  Args:
    bench, state: of the large model.
    parent: of the small one.
    params: of the small one.

  Returns:
    The largest difference on a few training images, over the largest logit,
    in float32; 0 where there are several processes, which don't look.
  """
  if distributed.process_count() > 1:
    return 0.0
  small, _ = models.make(Reader(parent.config["model"]), bench.source)
  batches = bench.batches(0, int(bench.config["seed"]))
  batch = next(batches)
  batches.close()
  image = bench.task.normalise(jnp.asarray(batch["image"][:IMAGES]))
  exact = {"dtype": "float32"} if hasattr(small, "dtype") else {}
  pairs = (small, params), (bench.model, state["params"])
  with jax.default_matmul_precision("highest"):
    before, after = (
      np.asarray(jax.jit(model.clone(**exact).apply)({"params": p}, image)[0])
      for model, p in pairs
    )
  change = float(np.abs(after - before).max() / max(np.abs(before).max(), 1e-9))
  if change > TOLERANCE:
    print(
      "warning: init: the grown model doesn't compute what"
      f" {parent.folder} does: logits differ by {change:.2g} of the"
      " largest. See elastic/grow.py for what grows exactly (tokens keep"
      " scale_tokens, widths have learned positions)",
      file=sys.stderr,
    )
  return change


# ------------------------------------------------------------------- growths

# `(fresh, small) -> large`, of parameters and of an optimizer's state.
Growth = tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]


def _append(bench: Bench, small: Any) -> Growth:
  """`grow.append` to the parameters drawn from the seed."""
  del small
  return (
    lambda fresh, small: grow.append(small, bench.names, fresh),
    lambda fresh, small: grow.append_moments(small, fresh),
  )


def _net2net(bench: Bench, small: Any) -> Growth:
  """`grow.copy` of units drawn by the run's seed."""
  key = jax.random.key(bench.config["seed"])
  return _copy(bench, small, jax.random.fold_in(key, 0x6207))


def _copy(bench: Bench, small: Any, key: jax.Array | None = None) -> Growth:
  """`grow.copy` of all units in turn, or drawn by `key`."""
  index = _copies(bench, small, key)
  return (
    lambda _, small: grow.copy(small, bench.names, index),
    lambda _, small: grow.copy_moments(small, bench.names, index),
  )


GROWTHS: dict[str, Callable[[Bench, Any], Growth]] = {
  "append": _append,
  "net2net": _net2net,
  "hypercloning": _copy,
}
METHODS = ("same", "resize", *GROWTHS)


def _copies(
  bench: Bench, small: Any, key: jax.Array | None
) -> dict[str, np.ndarray]:
  """role -> which old unit each new one is, for the roles whose size grew.

  Raises:
    UserError: other parameters, or a role that grew from or to two sizes.
  """
  big, named = tree.flatten(bench.abstract["params"]), tree.flatten(bench.names)
  old, sizes = tree.flatten(small), {}
  tree.check_same(old, big, "parent's parameters", "model's")
  for path, x in big.items():
    pairs = zip(named[path].names, old[path].shape, x.shape)
    for name, a, b in pairs:
      sizes.setdefault(axes_lib.role(name), set()).add((a, b))
  index = {}
  for role, found in sorted(sizes.items()):
    grew = {(a, b) for a, b in found if a != b}
    if grew and len(found) > 1:
      raise UserError(f"init: axis {role!r} has several sizes {sorted(found)}")
    for a, b in grew:
      if b < a:
        raise AxisError(f"axis {role!r} shrinks from {a} to {b}")
      drawn = key if role not in grow.NORMED else None
      index[role] = grow.copies(a, b, drawn)
  return index


def _moments(parent: Parent, abstract: Any, like: Any = None) -> Any:
  """The parent's optimizer state, in the structure of `like`.

  Raises:
    UserError: it comes from another optimizer.
  """
  like = abstract if like is None else like
  have, want = tree.flatten(parent.shapes("opt")), tree.flatten(like)
  if set(have) != set(want):
    other = sorted(set(have) ^ set(want))[0]
    raise UserError(
      f"init.optimizer=carry: {parent.folder} has another optimizer or other"
      f" parameters (opt/{other}): use init.optimizer=fresh"
    )
  return tree.like(like, parent.read(abstract, "opt"))


def _placed(bench: Bench, branch: str, fn: Callable[..., Any]) -> Any:
  """`fn` compiled, its result placed as that branch of the state."""
  places = jax.tree.map(lambda x: x.sharding, bench.abstract[branch])
  return jax.jit(fn, out_shardings=places)
