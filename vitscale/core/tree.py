"""Parameter trees by name: flatten, match with rules, split, slice.

A path is the keys joined by "/" (`blocks/mlp/kernel`). `match` is the one
regex-to-value idiom of the package (learning-rate multipliers, freezing,
loading): every leaf and every rule has to be used, so that a misspelt rule
is an error. Slicing reads axis names (`core.axes`), never positions.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vitscale.core import axes as axes_lib
from vitscale.core.axes import Axes, AxisError
from vitscale.core.errors import UserError, nearest

# Linear maps or fixed layouts: a prefix of them has no meaning. Smaller
# patches and other grids come from resizing (nn.patch, nn.position).
WHOLE: tuple[str, ...] = ("qkv", "patch", "pos", "kernel_h", "kernel_w")

_required = object()


# -------------------------------------------------------------------- names


def keys(path: Iterable[Any]) -> list[str]:
  """The keys of a jax key path as strings."""
  return [jax.tree_util.keystr((key,), simple=True) for key in path]


def flatten(tree: Any) -> dict[str, Any]:
  """`{"a": {"b": x}}` -> `{"a/b": x}`, in jax's leaf order.

  Raises:
    UserError: a key contains "/", so that the path would be ambiguous.
  """
  flat = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    parts = keys(path)
    if any("/" in part for part in parts):
      raise UserError(f"parameter key with a '/': {parts}")
    flat["/".join(parts)] = leaf
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """`{"a/b": x}` -> nested dicts; a path inside a leaf raises UserError."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
      if not isinstance(node, dict):
        raise UserError(f"{path!r} lies inside the leaf {key!r}")
    if last in node:
      raise UserError(f"{path!r} is a leaf and a branch")
    node[last] = leaf
  return tree


def like(tree: Any, flat: Mapping[str, Any]) -> Any:
  """The values of `flat` in the structure of `tree` (same paths)."""
  treedef = jax.tree.structure(tree)
  return jax.tree.unflatten(treedef, [flat[path] for path in flatten(tree)])


def check_same(
  a: Iterable[str], b: Iterable[str], what_a: str, what_b: str
) -> None:
  """Raises UserError, naming the difference, unless the paths are equal."""
  a, b = list(a), list(b)
  for here, there, name, other in (
    (a, b, what_a, what_b),
    (b, a, what_b, what_a),
  ):
    missing = [path for path in here if path not in set(there)]
    if missing:
      raise UserError(
        f"{len(missing)} of the {name} have no match in the {other}:"
        f" {_list(missing)}{_near(missing[0], there)}"
      )


def mirrored(path: str, flat: Mapping[str, Any]) -> Any:
  """What `flat` has of the parameter that a leaf mirrors, or None.

  Optimizer states and averages hold trees like the parameters': a leaf mirrors
  the parameter that its path ends in; counters mirror none.
  """
  parts = path.split("/")
  ends = ("/".join(parts[start:]) for start in range(len(parts)))
  return next((flat[end] for end in ends if end in flat), None)


# -------------------------------------------------------------------- rules


def match(
  tree: Any,
  rules: Sequence[tuple[str, Any]],
  *,
  what: str = "rules",
  default: Any = _required,
) -> Any:
  """Gives each leaf the value of the first rule whose regex fits its path.

  Args:
    tree: any tree; only its paths matter.
    rules: (regex, value) pairs; a regex has to fit the whole path.
    what: name of the rules for error messages (the config key).
    default: value of leaves no rule fits; without it they are an error.

  Returns:
    A tree of values in the structure of `tree`.

  Raises:
    UserError: bad regex, uncovered leaf, or a rule that fits nothing or only
      what earlier rules took.
  """
  paths = list(flatten(tree))
  compiled = [(_compile(regex, what), value) for regex, value in rules]
  fits, takes = [0] * len(compiled), [0] * len(compiled)
  out, bare = {}, []
  for path in paths:
    hits = [i for i, (rule, _) in enumerate(compiled) if rule.fullmatch(path)]
    for i in hits:
      fits[i] += 1
    if hits:
      takes[hits[0]] += 1
      out[path] = compiled[hits[0]][1]
    elif default is _required:
      bare.append(path)
    else:
      out[path] = default
  for (rule, _), fit, take in zip(compiled, fits, takes):
    if not fit:
      raise UserError(
        f"{what}: {rule.pattern!r} fits no parameter"
        f"{_near(rule.pattern, paths)}"
      )
    if not take:
      raise UserError(
        f"{what}: {rule.pattern!r} is never reached, earlier rules take"
        " everything it fits; put it first"
      )
  if bare:
    raise UserError(
      f"{what}: no rule for {len(bare)} parameters: {_list(bare)}; add"
      " ('.*', value) as the last rule"
    )
  return like(tree, out)


def partition(tree: Any, regex: str) -> tuple[dict, dict]:
  """(leaves whose whole path fits `regex`, the rest), as nested dicts.

  Raises:
    UserError: bad regex, or it fits nothing.
  """
  rule = _compile(regex, "partition")
  flat = flatten(tree)
  chosen = {k: v for k, v in flat.items() if rule.fullmatch(k)}
  if not chosen:
    raise UserError(f"{regex!r} fits no parameter{_near(regex, list(flat))}")
  rest = {k: v for k, v in flat.items() if k not in chosen}
  return unflatten(chosen), unflatten(rest)


def merge(*trees: Any) -> dict:
  """One nested dict of all leaves; a path that comes twice raises."""
  flat: dict[str, Any] = {}
  for tree in trees:
    part = flatten(tree)
    twice = [path for path in part if path in flat]
    if twice:
      raise UserError(f"merge: {_list(twice)} in more than one tree")
    flat.update(part)
  return unflatten(flat)


# ------------------------------------------------------------------ slicing

Index = int | np.ndarray | jax.Array | Sequence[int]


def slice_axes(params: Any, names: Any, index: Mapping[str, Index]) -> Any:
  """Cuts every parameter along named axes.

  Args:
    params: tree of arrays.
    names: the same tree of `Axes`.
    index: axis -> prefix length or integer array of entries to keep. A key
      with a scope (`embed@stage2`) takes that axis only; a bare role takes
      all its scopes that have no key of their own.

  Returns:
    The tree of slices. Differentiable: gradients scatter back.

  Raises:
    AxisError: unknown axis, one that no parameter has, one that has no
      meaningful part (`WHOLE`), or entries outside of the dimension.
  """
  for key in index:
    axes_lib.check_name(key)
    if axes_lib.role(key) in WHOLE:
      raise AxisError(f"axis {key!r} cannot be sliced")
  named, flat = flatten(names), flatten(params)
  check_same(named, flat, "axis names", "parameters")
  used, out = set(), {}
  for path, x in flat.items():
    _check_rank(path, named[path], x)
    for dim, name in enumerate(named[path].names):
      key = name if name in index else axes_lib.role(name)
      if key in index:
        used.add(key)
        x = _take(x, dim, index[key], f"{path}, axis {name!r}")
    out[path] = x
  unused = sorted(set(index) - used)
  if unused:
    have = sorted({n for axes in named.values() for n in axes.names})
    raise AxisError(
      f"no parameter has axis {unused[0]!r}{nearest(unused[0], have)}"
    )
  return like(params, out)


def shrink(params: Any, names: Any, small: Any) -> Any:
  """The leading part of every parameter, in the shapes of a smaller model.

  Args:
    params: tree of arrays of the big model.
    names: the same tree of `Axes`.
    small: tree of anything with `.shape`; parameters it lacks (deeper
      layers of a looped model) are dropped.

  Returns:
    The slices in the structure of `small`.

  Raises:
    AxisError: a parameter is missing in the big model, has another rank,
      grows, or would be cut along an axis of `WHOLE`.
  """
  named, flat = flatten(names), flatten(params)
  check_same(named, flat, "axis names", "parameters")
  out = {}
  for path, target in flatten(small).items():
    if path not in flat:
      raise AxisError(f"the big model has no {path}{_near(path, list(flat))}")
    out[path] = shrink_leaf(path, flat[path], named[path], target)
  return like(small, out)


def shrink_leaf(path: str, x: Any, axes: Axes, target: Any) -> Any:
  """One parameter of `shrink`, with the same errors; `path` is for them."""
  _check_rank(path, axes, x)
  have, want = tuple(x.shape), tuple(target.shape)
  if len(have) != len(want):
    raise AxisError(f"{path}: rank of {have} is not that of {want}")
  for dim, (name, big, little) in enumerate(zip(axes.names, have, want)):
    if big == little:
      continue
    if little > big:
      raise AxisError(f"{path}: axis {name!r} grows from {big} to {little}")
    if axes_lib.role(name) in WHOLE:
      raise AxisError(
        f"{path}: axis {name!r} goes from {big} to {little}, but it cannot"
        " be sliced; resize it"
      )
    x = _take(x, dim, little, path)
  return x


def _take(x: Any, dim: int, index: Index, where: str) -> Any:
  size = x.shape[dim]
  if isinstance(index, (int, np.integer)):
    if not 0 < index <= size:
      raise AxisError(f"{where}: prefix {index} is not in 1..{size}")
    if isinstance(x, jax.Array):
      return jax.lax.slice_in_dim(x, 0, int(index), axis=dim)
    return x[(slice(None),) * dim + (slice(0, int(index)),)]
  if not isinstance(index, jax.Array):  # known now, so check it now
    index = np.asarray(index)
    if index.ndim != 1 or index.dtype.kind not in "iu" or not index.size:
      raise AxisError(f"{where}: want an int or a vector of ints, got {index}")
    if index.min() < 0 or index.max() >= size:
      raise AxisError(
        f"{where}: entries {index.min()}..{index.max()} not in 0..{size - 1}"
      )
  return x[(slice(None),) * dim + (index,)]


# ------------------------------------------------------------------ helpers


def _check_rank(path: str, axes: Axes, x: Any) -> None:
  if len(axes.names) != len(x.shape):
    raise AxisError(f"{path}: axes '{axes}' for shape {tuple(x.shape)}")


def _compile(regex: str, what: str) -> re.Pattern:
  try:
    return re.compile(regex)
  except re.error as error:
    raise UserError(f"{what}: bad regex {regex!r}: {error}") from None


def _list(paths: Sequence[str], limit: int = 4) -> str:
  more = len(paths) - limit
  return ", ".join(paths[:limit]) + (f" and {more} more" if more > 0 else "")


def _near(word: str, paths: Sequence[str]) -> str:
  """Hint from paths; a long tree is not listed whole."""
  hint = nearest(word, paths)
  if hint.startswith(" (one of") and len(paths) > 4:
    return f" (there are {_list(paths)})"
  return hint
