"""Learning-rate multipliers from shapes and axis names: muP, layer decay."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale.core import axes as axes_lib
from vitscale.core import tree as tree_lib
from vitscale.core.axes import Axes
from vitscale.core.errors import UserError


def growth(
  mup: Mapping[str, Any] | None,
  shapes: Mapping[str, Any],
  named: Mapping[str, Axes],
) -> dict[str, tuple[float, float]]:
  """Path -> growth of (fan-in, fan-out) over the base model.

  Args:
    mup: None, `{"base_width": 256}` (embed, mlp and heads grow together) or
      `{"base": tree}` of the base model's shapes.
    shapes: path -> anything with `.shape`.
    named: path -> `Axes`.
  """
  if not mup:
    return dict.fromkeys(shapes, (1.0, 1.0))
  if set(mup) == {"base"}:
    base = tree_lib.flatten(mup["base"])
    tree_lib.check_same(shapes, base, "parameters", "optim.mup.base")
    sizes = {path: tuple(base[path].shape) for path in shapes}
  elif set(mup) == {"base_width"}:
    sizes = _scaled(mup["base_width"], shapes, named)
  else:
    raise UserError(
      f"optim.mup has {sorted(mup)}; want either base_width or base"
    )
  out = {}
  for path, axes in named.items():
    have = dict(zip(axes.names, shapes[path].shape))
    was = dict(zip(axes.names, sizes[path]))
    ratio = lambda fan, have=have, was=was: math.prod(
      have[name] / was[name] for name in fan
    )
    out[path] = ratio(axes.fan_in), ratio(axes.fan_out)
  return out


def _scaled(base_width, shapes, named) -> dict[str, tuple[float, ...]]:
  """Base sizes when embed, mlp and heads all grow in step with the width."""
  widths = {
    size
    for path, axes in named.items()
    for name, size in zip(axes.names, shapes[path].shape)
    if axes_lib.role(name) == "embed"
  }
  if len(widths) != 1:
    raise UserError(
      f"optim.mup.base_width needs one residual width, found"
      f" {sorted(widths)}; give the base model's shapes as mup.base"
    )
  ratio = base_width / widths.pop()
  return {
    path: tuple(
      size * (ratio if axes_lib.role(n) in ("embed", "mlp", "heads") else 1)
      for n, size in zip(axes.names, shapes[path].shape)
    )
    for path, axes in named.items()
  }


_LAYER = re.compile(r"(?:^|/)[A-Za-z_]*?(?:block|layer)s?_?(\d+)(?=/)")
_STEM = ("patch", "pos", "registers")


def layer_decay(
  rate: float | None, shapes: Mapping[str, Any], named: Mapping[str, Axes]
) -> dict[str, float | np.ndarray]:
  """Path -> rate ** (layers above it), as in Clark et al. 2020 and BEiT.

  A layer is an entry of the `layers` axis or a path like `block_3/...`;
  patch (with its bias), position and register parameters stand below the
  first, everything else (last norm, head) above the last.
  """
  if not rate:
    return dict.fromkeys(shapes, 1.0)
  number = {path: _LAYER.search(path) for path in shapes}
  number = {path: int(m[1]) for path, m in number.items() if m}
  stacks = {
    path: axes.names.index("layers")
    for path, axes in named.items()
    if "layers" in axes.names
  }
  depths = {shapes[path].shape[dim] for path, dim in stacks.items()}
  if number:
    depths.add(max(number.values()) + 1)
  if len(depths) != 1:
    raise UserError(
      "optim.layer_decay needs one stack of layers (a 'layers' axis or"
      f" paths like block_3/...), found depths {sorted(depths)}; use lr_mult"
    )
  depth = depths.pop()
  stem = {
    path
    for path, axes in named.items()
    if any(axes_lib.role(name) in _STEM for name in axes.names)
  }
  kernels = {p.rpartition("/")[0] for p in stem if named[p].inputs} - {""}
  stem |= {path for path in named if path.rpartition("/")[0] in kernels}
  out: dict[str, Any] = {}
  for path, axes in named.items():
    if path in stacks:
      shape = [1] * len(axes.names)
      shape[stacks[path]] = depth
      above = depth - np.arange(depth)
      out[path] = (float(rate) ** above).reshape(shape)
    elif path in number:
      out[path] = float(rate) ** (depth - number[path])
    elif path in stem:
      out[path] = float(rate) ** (depth + 1)
    else:
      out[path] = 1.0
  return out
