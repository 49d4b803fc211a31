"""Growing a trained model into a larger one that computes the same.

    append      new hidden units that nothing listens to yet: zero where they
                read, fresh where they write (TokenFormer, 2410.23168)
    copy        new units are copies, and what they write is shared out:
                Net2WiderNet (1511.05641) along hidden units and heads,
                HyperCloning (2409.12903) along every width at once

All of them read axis names: an axis left of a parameter's arrow is what it
reads from, so no family has code for it. With `append` the first gradient
reaches the new units' reading side only through what they write, so that
must not be zero as well.

`append_moments` and `copy_moments` carry an optimizer's state along.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes as axes_lib
from vitscale.core import tree
from vitscale.core.axes import Axes, AxisError

# A copied entry of these would count twice in a norm's mean unless all are
# copied equally often.
NORMED = ("embed",)


def append(params: Any, names: Any, fresh: Any) -> Any:
  """The large model that starts with the small one and computes the same.

  Exact where a unit that reads nothing writes nothing: GELU and SwiGLU hidden
  units, attention heads (their values are zero), Pattention pairs with a kept
  `scale_tokens`; not pairs under a softmax (`exp_l1`).

  Args:
    params: tree of arrays of the small model.
    names: `Axes` of the large model's parameters.
    fresh: the large model's parameters as initialised.

  Returns:
    `fresh` with `params` in the leading corner; the rest of a parameter is
    zero where it lies along an output axis that grew.

  Raises:
    AxisError: a parameter only one of them has, one that got smaller, or one
      that grew along an axis that norms see.
  """
  named, big, small = (tree.flatten(t) for t in (names, fresh, params))
  tree.check_same(small, big, "small model's parameters", "large one's")
  out = {}
  for path, new in big.items():
    old, axes = small[path], named[path]
    grew = _grown(path, axes, old.shape, new.shape)
    for name in grew:
      if axes_lib.role(name) in NORMED:
        raise AxisError(
          f"{path}: axis {name!r} is seen by norms, appending to it changes"
          " what they compute: use copy"
        )
    keep = jnp.ones(new.shape, bool)
    for dim, name in enumerate(axes.names):
      if name in grew and name not in axes.fan_in:
        entry = jnp.arange(new.shape[dim]) < old.shape[dim]
        keep &= jnp.expand_dims(entry, [d for d in range(new.ndim) if d != dim])
    corner = tuple(slice(n) for n in old.shape)
    out[path] = jnp.where(keep, new, 0).at[corner].set(old)
  return tree.like(fresh, out)


def copies(small: int, large: int, key: jax.Array | None = None) -> np.ndarray:
  """(large,) which old unit each new one is: all in turn, or drawn by `key`.

  Raises:
    AxisError: `large` is smaller.
  """
  if large < small:
    raise AxisError(f"{large} units can't hold copies of {small}")
  more = np.arange(large - small) % small
  if key is not None:
    more = np.asarray(jax.random.randint(key, (large - small,), 0, small))
  return np.concatenate([np.arange(small), more])


def copy(params: Any, names: Any, index: Mapping[str, Sequence[int]]) -> Any:
  """Every parameter with the units of some axes copied; computes the same.

  Args:
    params: tree of arrays.
    names: the same tree of `Axes`.
    index: role -> which old entry each new one is (`copies`). All scopes of a
      role grow alike.

  Returns:
    The large parameters: entries along a named axis are repeated, and divided
    by how often where the parameter reads from it.

  Raises:
    AxisError: an entry that is dropped, an axis that no parameter has, or
      one that norms see and whose entries are not copied equally often.
  """
  counts = {}
  for name, which in index.items():
    counts[name] = np.bincount(which)
    if not counts[name].all():
      raise AxisError(
        f"axis {name!r}: entry {counts[name].argmin()} is dropped"
      )
    if name in NORMED and len(set(counts[name])) > 1:
      raise AxisError(
        f"axis {name!r} is seen by norms: copy all its entries equally often"
        f" ({len(counts[name])} to a multiple of it)"
      )
  named, out, used = tree.flatten(names), {}, set()
  for path, x in tree.flatten(params).items():
    for dim, name in enumerate(named[path].names):
      role = axes_lib.role(name)
      if role not in index:
        continue
      used.add(role)
      which = np.asarray(index[role])
      if len(counts[role]) != x.shape[dim]:
        raise AxisError(
          f"{path}: axis {name!r} has {x.shape[dim]} entries, not"
          f" {len(counts[role])}"
        )
      x = jnp.take(x, which, axis=dim)
      if name in named[path].fan_in:
        x = x * _along(dim, x, 1 / _counts(which))
    out[path] = x
  if missing := sorted(set(index) - used):
    raise AxisError(f"no parameter has axis {missing[0]!r}")
  return tree.like(params, out)


def append_moments(moments: Any, fresh: Any) -> Any:
  """An optimizer's state after `append`: old moments, zero for what is new.

  The gradient of what was there is what it was. A new entry's first updates of
  Adam are larger than a fresh optimizer's, as the step count is carried
  and corrects no bias any more: warm the rate up again.

  Args:
    moments: state of the small model's optimizer.
    fresh: initial state of the large one's, of the same structure.
  """
  old, out = tree.flatten(moments), {}
  for path, new in tree.flatten(fresh).items():
    x = old[path]
    corner = tuple(slice(n) for n in x.shape)
    out[path] = x if x.shape == new.shape else new.at[corner].set(x)
  return tree.like(fresh, out)


def copy_moments(
  moments: Any, names: Any, index: Mapping[str, Sequence[int]]
) -> Any:
  """An optimizer's state after `copy`: what copies of a unit would have.

  Copies share the gradient of the unit's output, so that moments are divided
  by their number along axes that a parameter writes; second moments by its
  square. (What parameters read is copied undivided.) Adam then moves
  each copy as it moved the unit.

  Args:
    moments: state of the small model's optimizer; a leaf mirrors the parameter
      in which its path ends, second moments lie below `nu`.
    names: `Axes` of the parameters.
    index: as in `copy`.
  """
  named, out = tree.flatten(names), {}
  for path, x in tree.flatten(moments).items():
    axes = tree.mirrored(path, named)
    if axes is not None and len(axes.names) == len(x.shape):
      power = 2 if "nu" in path.split("/") else 1
      for dim, name in enumerate(axes.names):
        which = index.get(axes_lib.role(name))
        if which is None:
          continue
        x = jnp.take(x, np.asarray(which), axis=dim)
        if name not in axes.fan_in:
          x = x * _along(dim, x, 1 / _counts(which) ** power)
    out[path] = x
  return tree.like(moments, out)


def _counts(which: Sequence[int]) -> np.ndarray:
  """How many copies there are of the unit that each new one is."""
  return np.bincount(which)[np.asarray(which)]


def _along(dim: int, x: Any, factor: np.ndarray) -> jax.Array:
  """`factor` (n,) in the dtype of `x`, to multiply it along a dimension."""
  shape = [1] * x.ndim
  shape[dim] = -1
  return jnp.asarray(factor, x.dtype).reshape(shape)


def _grown(path: str, axes: Axes, old, new) -> list[str]:
  """Names of the axes that grew.

  Raises:
    AxisError: other rank, or one that got smaller.
  """
  if len(old) != len(new):
    raise AxisError(f"{path}: rank of {tuple(old)} is not that of {tuple(new)}")
  for name, a, b in zip(axes.names, old, new):
    if b < a:
      raise AxisError(f"{path}: axis {name!r} shrinks from {a} to {b}")
  return [n for n, a, b in zip(axes.names, old, new) if b > a]
