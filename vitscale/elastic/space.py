"""What a nested run can be cut to, what that costs, and budgets.

A run whose granularities are parts of the FFN, the same in all layers, can be
mixed: every layer takes any of its levels. Of other runs the granularities
they trained are all there is.

    macs:0.6     multiply-accumulates of a forward pass of one image
    params:3e6   parameters
    latency:5ms  measured milliseconds of a forward pass (latency.py)

A number up to 1 is a share of the whole model.
"""

import dataclasses
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import flax.linen as nn
import jax
import numpy as np

from vitscale import zoo
from vitscale.core import axes as axes_lib
from vitscale.core.errors import UserError, nearest
from vitscale.elastic import mixes as mixes_lib
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.mixes import Mix
from vitscale.elastic.spec import ElasticSpec

MOST = 4096  # models that a selector scores

# Kind of budget -> its unit.
KINDS: dict[str, str] = {
  "macs": "macs", "params": "params", "latency": "ms of latency",
}  # fmt: skip
_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}  # in milliseconds
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)(e-?\d+)?")


# ------------------------------------------------------------------- budgets


@dataclasses.dataclass(frozen=True)
class Budget:
  """The most a model may cost: `limit` units of `kind`, asked as `text`."""

  kind: str
  limit: float
  text: str


def kind_of(text: str) -> str:
  """The kind of a budget's text; raises UserError of an unknown one."""
  kind, colon, _ = text.rpartition(":")
  kind = kind if colon else "macs"
  if kind not in KINDS:
    raise UserError(f"budget {text!r}: kind {kind!r}{nearest(kind, KINDS)}")
  return kind


def budget(text: str, full: Callable[[str], float]) -> Budget:
  """`"0.6"`, `"macs:0.6"`, `"params:3e6"`, `"latency:5ms"`.

  Args:
    text: what was asked.
    full: kind -> cost of the whole model.

  Raises:
    UserError: unknown kind, no positive number, a time without its unit.
  """
  kind, number = kind_of(text), text.rpartition(":")[2]
  unit = next((u for u in _UNITS if number.endswith(u)), "")
  unit = unit if kind == "latency" else ""
  digits = number.removesuffix(unit)
  if not _NUMBER.fullmatch(digits) or not float(digits):
    raise UserError(
      f"budget {text!r}: write 0.6, macs:0.6, params:3e6 or latency:5ms"
    )
  value = float(digits)
  if unit:
    return Budget(kind, value * _UNITS[unit], text)
  if kind == "latency" and value > 1:
    raise UserError(f"budget {text!r}: a time has a unit, latency:{digits}ms")
  return Budget(kind, value * full(kind) if value <= 1 else value, text)


def cost(kind: str, model: nn.Module, image: tuple[int, int, int]) -> int:
  """What a model costs for an image of (h, w, c): `macs` or `params`."""
  module = sys.modules[type(model).__module__]
  if kind == "params":
    one = jax.ShapeDtypeStruct((1, *image), np.float32)
    shapes = axes_lib.unbox(zoo.boxed(module, model, one))
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))
  by_hand = getattr(module, "flops_per_image", None)
  if by_hand:
    return by_hand(spec_lib.options_of(model), image)
  return zoo.count_macs(module, model, image)


# --------------------------------------------------------------------- space


class Space:
  """What a nested run can be cut to.

  Attributes:
    specs: its granularities.
    levels: of the FFN, rising, where nothing else is nested; else empty.
    depth: layers to mix levels over.
  """

  def __init__(
    self,
    model: nn.Module,
    granularities: Sequence[str],
    price: Callable[[nn.Module], float],
    saved: Callable[[int, Fraction], float] | None = None,
  ):
    """Args:
    model: the whole one.
    granularities: spec texts that the run trained.
    price: cost of a small model.
    saved: `(layer, level) -> cost saved` against the whole layer; by
      default the difference of two prices. Costs add up over layers.
    """
    self.specs = [spec_lib.parse(text) for text in granularities]
    self.depth = getattr(model, "depth", 0)
    self._model, self._price = model, price
    mixed = self.depth and all(
      spec.touched() <= {"ffn"} and len(spec.ffn) == 1 for spec in self.specs
    )
    parts = {spec.ffn[0] for spec in self.specs} if mixed else set()
    # Sizes have no order beside fractions.
    fractions = all(isinstance(part, Fraction) for part in parts)
    self.levels = sorted(parts) if fractions else []
    self._own_saving = saved or self._difference
    self._saved: dict[tuple[int, int], float] = {}
    self._whole: float | None = None

  # ------------------------------------------------------ mixes and specs

  def spec(self, mix: Mix) -> ElasticSpec:
    """Of level numbers."""
    return ElasticSpec(ffn=tuple(self.levels[level] for level in mix))

  def mix(self, spec: ElasticSpec) -> Mix:
    """Level numbers, one a layer."""
    parts = spec.ffn * (self.depth if len(spec.ffn) == 1 else 1)
    return tuple(self.levels.index(part) for part in parts)

  def shape(self, name: str) -> list[Mix]:
    """Every mix of a shape, see mixes.py.

    Raises:
      UserError: there are no levels to mix, or too many mixes.
    """
    self.check_mixed(name)
    return mixes_lib.shape(name, len(self.levels), self.depth)

  def check_mixed(self, selector: str) -> None:
    """Raises UserError where there are no levels to mix."""
    if not self.levels:
      raise UserError(
        f"{selector} mixes levels of the FFN, this run nests something else:"
        " select by least_slope or exhaustive"
      )

  # ---------------------------------------------------------------- costs

  def cost(self, spec: ElasticSpec) -> float:
    """Of one candidate; mixes are summed up from their layers."""
    if not self.levels:
      return self._price(spec_lib.small(self._model, spec)[0])
    return self.of(self.mix(spec))

  def of(self, mix: Mix) -> float:
    """The cost of a mix."""
    return self.whole() - sum(self.saved(i, k) for i, k in enumerate(mix))

  def whole(self) -> float:
    """The cost of the model uncut."""
    if self._whole is None:
      self._whole = self._price(self._model)
    return self._whole

  def saved(self, layer: int, level: int) -> float:
    """What a layer at a level costs less than the whole layer."""
    if self.levels[level] == spec_lib.WHOLE:
      return 0
    if (layer, level) not in self._saved:
      value = self._own_saving(layer, self.levels[level])
      self._saved[layer, level] = value
    return self._saved[layer, level]

  def _difference(self, layer: int, part: Fraction) -> float:
    parts = [spec_lib.WHOLE] * self.depth
    parts[layer] = part
    one = spec_lib.small(self._model, ElasticSpec(ffn=tuple(parts)))[0]
    return self.whole() - self._price(one)

  def ends(self) -> tuple[float, float]:
    """Costs of the smallest and the largest model."""
    if self.levels:
      mixes = [(k,) * self.depth for k in range(len(self.levels))]
      costs = [self.of(mix) for mix in mixes]
    else:
      costs = [self.cost(spec) for spec in self.specs]
    return min(costs), max(costs)

  # ------------------------------------------------------- within a limit

  def fitting(self, mixes: Iterable[Mix], limit: float) -> list[Mix]:
    """Those mixes that a limit allows."""
    return [mix for mix in mixes if self.of(mix) <= limit]

  def fullest(self, mixes: Iterable[Mix], limit: float) -> list[Mix]:
    """Those that fit and can't be raised by a level within the given ones."""
    fit = self.fitting(mixes, limit)
    known = set(fit)
    return [mix for mix in fit if not known.intersection(self.raised(mix))]

  def raised(self, mix: Mix) -> list[Mix]:
    """The mix with one layer a level higher, for each layer that can be."""
    top = len(self.levels) - 1
    return [
      (*mix[:i], level + 1, *mix[i + 1 :])
      for i, level in enumerate(mix)
      if level < top
    ]

  def least(self, losses: Sequence[Sequence[float]], limit: float) -> Mix:
    """The mix within a limit with the least sum of losses, exactly.

    By dynamic programming over layers: of partial mixes that cost as much or
    more and lose as much or more than another none is gone on with.

    Args:
      losses: of each layer (L) at each level (g).
      limit: no lower than the smallest mix.
    """
    front: list[tuple[float, float, Mix]] = [(self.whole(), 0.0, ())]
    for i, row in enumerate(losses):
      grown = [
        (spent - self.saved(i, level), lost + row[level], (*mix, level))
        for spent, lost, mix in front
        for level in range(len(self.levels))
      ]
      front = []
      for one in sorted(grown, key=lambda x: x[:2]):
        if not front or one[1] < front[-1][1]:
          front.append(one)
    # The front falls in loss as it rises in cost: the last that fits is best.
    fit = [mix for _, _, mix in front if self.of(mix) <= limit]
    return fit[-1] if fit else (0,) * self.depth

  def check(self, asked: Budget) -> None:
    """Raises UserError, with both ends, of a budget that is out of range."""
    low, high = self.ends()
    if low <= asked.limit <= high:
      return
    where = "below the smallest" if asked.limit < low else "above the largest"
    raise UserError(
      f"budget {asked.text} is {asked.limit:.6g} {KINDS[asked.kind]}, {where}"
      f" model of this run: smallest {_shown(low)} ({low / high:.4g} of the"
      f" largest), largest {_shown(high)}"
    )


def _shown(value: float) -> str:
  return str(value) if isinstance(value, int) else f"{value:.4g}"
