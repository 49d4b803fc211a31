"""Sweeps as data: lists of flat override dicts and four ways to combine them.

    grid = sweep.product({"model.width": [64, 128], "seed": range(3)})
    pair = sweep.zip_({"model.patch_size": [2, 4], "batch_size": [64, 256]})
    for overrides in sweep.chain(sweep.product(grid, pair), extra):
      run(sweep.apply(config, overrides))

A sweep is a plain list of `{"model.width": 64, ...}`; anything that makes
such a list takes part. Everything here is pure: the same call gives the same
list in the same order.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import product as cartesian
from typing import Any

from ml_collections import ConfigDict

from vitscale.core.config import check_type, suggest
from vitscale.core.errors import UserError

Sweep = list[dict[str, Any]]
Axes = Mapping[str, Iterable[Any]]


def product(*parts: Axes | Sweep, **axes: Iterable[Any]) -> Sweep:
  """Every combination; the last axis varies fastest.

  Args:
    *parts: `{key: values}` for dotted keys, or sweeps to multiply with.
    **axes: values of keys without a dot.

  Raises:
    UserError: an empty axis, values that are no list, a key set twice.
  """
  columns = [column for part in (*parts, axes) for column in _columns(part)]
  return [_merge(point) for point in cartesian(*columns)]


def zip_(*parts: Axes | Sweep, **axes: Iterable[Any]) -> Sweep:
  """Goes along all axes (or sweeps) at once; they must be equally long.

  Raises:
    UserError: unequal lengths, an empty axis, a key set twice.
  """
  columns = [column for part in (*parts, axes) for column in _columns(part)]
  lengths = {_label(column): len(column) for column in columns}
  if len(set(lengths.values())) > 1:
    listed = ", ".join(f"{key} has {n}" for key, n in lengths.items())
    raise UserError(f"zip_ needs axes of equal length: {listed}")
  return [_merge(point) for point in zip(*columns)]


def chain(*sweeps: Sweep) -> Sweep:
  """One sweep after the other; a point that occurs again is dropped."""
  points: Sweep = []
  for sweep in sweeps:
    points += [dict(point) for point in sweep if point not in points]
  return points


def subsample(sweep: Sweep, n: int, seed: int) -> Sweep:
  """`n` points drawn without replacement, in their old order.

  Raises:
    UserError: the sweep has fewer than `n` points.
  """
  if not 0 <= n <= len(sweep):
    raise UserError(f"can't draw {n} points from a sweep of {len(sweep)}")
  kept = sorted(random.Random(seed).sample(range(len(sweep)), n))
  return [dict(sweep[i]) for i in kept]


def apply(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
  """A locked copy of `config` with the overrides set.

  Raises:
    UserError: unknown key (nearest offered), a group instead of a leaf, or a
      value of another type (int widens to float; None takes any type).
  """
  config = config.copy_and_resolve_references()
  for key, value in overrides.items():
    *parents, leaf = key.split(".")
    node = config
    for name in parents:
      node = node.get(name) if isinstance(node, ConfigDict) else None
    if not isinstance(node, ConfigDict) or leaf not in node:
      raise UserError(f"unknown config key {key!r}{suggest(key, config)}")
    if isinstance(node[leaf], ConfigDict):
      raise UserError(f"config key {key!r} is a group: set one of its keys")
    if isinstance(node[leaf], str) and not isinstance(value, str | None):
      # check_type reads command lines, where every value may be a string.
      kind = type(value).__name__
      raise UserError(f"{key}={value!r} is {kind}, should be str")
    value = check_type(key, value, node[leaf])
    with node.ignore_type(), node.unlocked():
      node[leaf] = value
  return config.lock()


def _columns(part: Axes | Sweep) -> Iterator[Sweep]:
  """Axes give one column of one-key points each, a sweep is a column."""
  if not isinstance(part, Mapping):
    yield list(part)
    return
  for key, values in part.items():
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
      raise UserError(f"sweep axis {key!r} is no list: {key}=[{values!r}]")
    column = [{key: value} for value in values]
    if not column:
      raise UserError(f"sweep axis {key!r} has no values")
    yield column


def _merge(point: Iterable[dict[str, Any]]) -> dict[str, Any]:
  merged: dict[str, Any] = {}
  for part in point:
    for key in part:
      if key in merged:
        raise UserError(f"sweep sets {key!r} twice")
    merged |= part
  return merged


def _label(column: Sweep) -> str:
  return "+".join(column[0]) if column else "an empty sweep"
