"""Which nested model for a budget: candidates, their cost, a choice.

    least_slope  shapes that rise with depth and use two neighbouring levels
                 (MatFormer, 2310.07707 section 3.3); nothing is measured
    sensitivity  each layer alone is set to each level and scored; the mix with
                 the least sum of what that cost, by dynamic programming
    exhaustive   every mix of levels that leaves no room for more, scored on
                 held-out data; for spaces of at most 4096

They mix levels of the FFN, where a run nests nothing else; of other runs the
granularities they trained are the candidates, and sensitivity has none.
"""

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vitscale import zoo
from vitscale.core import axes as axes_lib
from vitscale.core import tree
from vitscale.core.errors import UserError, nearest
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.slice import layer_of
from vitscale.elastic.spec import ElasticSpec

MOST = 4096  # configurations of an exhaustive search
KINDS = {
  "macs": "multiply-accumulates of a forward pass of one image",
  "params": "parameters",
}


@dataclasses.dataclass(frozen=True)
class Budget:
  """The most a model may cost: `limit` units of `kind`, asked as `text`."""

  kind: str
  limit: float
  text: str


def budget(text: str, full: Callable[[str], int]) -> Budget:
  """`"0.6"`, `"macs:0.6"`, `"params:3e6"`: at most 1 is a fraction.

  Args:
    text: what was asked.
    full: kind -> cost of the whole model.

  Raises:
    UserError: unknown kind, or no positive number.
  """
  kind, colon, number = text.rpartition(":")
  kind = kind if colon else "macs"
  if kind not in KINDS:
    raise UserError(f"budget {text!r}: kind {kind!r}{nearest(kind, KINDS)}")
  if not re.fullmatch(r"(\d+\.?\d*|\.\d+)(e\d+)?", number) or not float(number):
    raise UserError(f"budget {text!r}: write 0.6, macs:0.6 or params:3e6")
  value = float(number)
  return Budget(kind, value * full(kind) if value <= 1 else value, text)


def cost(kind: str, model: nn.Module, image: tuple[int, int, int]) -> int:
  """What a model costs for an image of (h, w, c), in units of `KINDS`."""
  module = sys.modules[type(model).__module__]
  if kind == "params":
    one = jax.ShapeDtypeStruct((1, *image), np.float32)
    shapes = axes_lib.unbox(zoo.boxed(module, model, one))
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))
  by_hand = getattr(module, "flops_per_image", None)
  if by_hand:
    return by_hand(spec_lib.options_of(model), image)
  return zoo.count_macs(module, model, image)


class Space:
  """What a nested run can be cut to, and what that costs.

  Attributes:
    specs: its granularities.
    levels: of the FFN, rising, where nothing else is nested; else empty.
    depth: layers to mix levels over.
  """

  def __init__(
    self,
    model: nn.Module,
    granularities: Sequence[str],
    price: Callable[[nn.Module], int],
  ):
    """`price` is the cost of a small model."""
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
    self._shares: dict[tuple[int, Any], int] = {}

  def cost(self, spec: ElasticSpec) -> int:
    """Of one candidate; mixes are summed up from their layers."""
    if not self.levels:
      return self._price(spec_lib.small(self._model, spec)[0])
    whole = self._share(0, spec_lib.WHOLE)
    parts = spec.ffn * (self.depth if len(spec.ffn) == 1 else 1)
    return whole + sum(
      self._share(i, part) - whole for i, part in enumerate(parts)
    )

  def _share(self, layer: int, part: Any) -> int:
    """The cost with one layer at a level and all others whole."""
    if part == spec_lib.WHOLE:
      layer = 0
    if (layer, part) not in self._shares:
      parts = [spec_lib.WHOLE] * self.depth
      parts[layer] = part
      one = spec_lib.small(self._model, ElasticSpec(ffn=tuple(parts)))[0]
      self._shares[layer, part] = self._price(one)
    return self._shares[layer, part]

  def least_slope(self) -> list[ElasticSpec]:
    """Rising shapes of two neighbouring levels, 3 (L - 1) + 4 of four."""
    if not self.levels:
      return self.specs
    mixes = [(level,) for level in self.levels]
    for low, high in itertools.pairwise(self.levels):
      for first in range(1, self.depth):
        mixes.append((low,) * first + (high,) * (self.depth - first))
    return [ElasticSpec(ffn=mix) for mix in mixes]

  def exhaustive(self) -> list[ElasticSpec]:
    """Every mix of levels.

    Raises:
      UserError: more than `MOST` of them.
    """
    if not self.levels:
      return self.specs
    count = len(self.levels) ** self.depth
    if count > MOST:
      raise UserError(
        f"{len(self.levels)} levels in {self.depth} layers are {count} models,"
        f" exhaustive search takes {MOST} at most: use least_slope"
      )
    mixes = itertools.product(self.levels, repeat=self.depth)
    return [ElasticSpec(ffn=mix) for mix in mixes]

  def full(self, spec: ElasticSpec, limit: float) -> bool:
    """Whether a mix leaves no room to raise any layer by one level."""
    if not self.levels:
      return True
    for i, part in enumerate(spec.ffn):
      higher = self.levels[self.levels.index(part) + 1 :][:1]
      mix = (*spec.ffn[:i], *higher, *spec.ffn[i + 1 :])
      if higher and self.cost(ElasticSpec(ffn=mix)) <= limit:
        return False
    return True


def choose(
  space: Space,
  asked: Budget,
  how: str,
  score: Callable[[ElasticSpec], float] | None = None,
) -> ElasticSpec:
  """The candidate for a budget.

  Args:
    space: of the run.
    asked: in the units of the space's price.
    how: "least_slope" takes the costliest that fits, "sensitivity" the best
      sum of single layers, "exhaustive" the best score.
    score: of a candidate on held-out data, higher is better.

  Raises:
    UserError: unknown `how`, nothing to score on, or a budget out of range.
  """
  if how not in SELECTORS:
    raise UserError(f"selector {how!r}{nearest(how, SELECTORS)}")
  found = SELECTORS[how](space)
  costs = {spec: space.cost(spec) for spec in found}
  low, high = min(costs.values()), max(costs.values())
  if not low <= asked.limit <= high:
    where = "below the smallest" if asked.limit < low else "above the largest"
    raise UserError(
      f"budget {asked.text} is {asked.limit:.6g} {asked.kind}, {where} model of"
      f" this run: smallest {low} ({low / high:.4g} of the largest), largest"
      f" {high}"
    )
  fit = [spec for spec in found if costs[spec] <= asked.limit]
  if how == "least_slope":
    return max(fit, key=costs.__getitem__)
  if score is None:
    raise UserError(f"{how} scores on held-out data: config.evals")
  if how == "sensitivity":
    return least_sensitive(space, asked.limit, score)
  return max((s for s in fit if space.full(s, asked.limit)), key=score)


def least_sensitive(
  space: Space, limit: float, score: Callable[[ElasticSpec], float]
) -> ElasticSpec:
  """The mix within `limit` whose layers, changed one at a time, cost least.

  Exact for losses that add up over layers. Measures L (levels - 1) + 1
  models; of mixes equal in cost only the best so far is gone on with.
  """
  top = [space.levels[-1]] * space.depth

  def changed(layer: int, level: Any) -> ElasticSpec:
    return ElasticSpec(ffn=(*top[:layer], level, *top[layer + 1 :]))

  most, best = (
    score(ElasticSpec(ffn=tuple(top))),
    space.cost(changed(0, top[0])),
  )
  front: list[tuple[int, float, tuple]] = [(best, 0.0, ())]
  for layer in range(space.depth):
    grown = []
    for level in space.levels:
      spec = changed(layer, level)
      loss = most - score(spec) if level != top[0] else 0.0
      saved = best - space.cost(spec)
      grown += [(c - saved, v + loss, (*mix, level)) for c, v, mix in front]
    front = []
    for one in sorted(grown, key=lambda x: x[:2]):
      if not front or one[1] < front[-1][1]:
        front.append(one)
  # The front falls in loss as it rises in cost: the last that fits is best.
  return ElasticSpec(ffn=[mix for c, _, mix in front if c <= limit][-1])


def _uniform(space: Space) -> list[ElasticSpec]:
  """The ends of what sensitivity can reach.

  Raises:
    UserError: there are no levels to mix.
  """
  if not space.levels:
    raise UserError(
      "sensitivity mixes levels of the FFN, this run nests something else:"
      " select by least_slope or exhaustive"
    )
  return [ElasticSpec(ffn=(level,) * space.depth) for level in space.levels]


SELECTORS: dict[str, Callable[[Space], list[ElasticSpec]]] = {
  "least_slope": Space.least_slope,
  "sensitivity": _uniform,
  "exhaustive": Space.exhaustive,
}


def masked(params: Any, names: Any, sizes: Sequence[int]) -> Any:
  """Parameters of the big model in which small FFNs compute the same.

  Rows that only dropped hidden units write are zero: one compiled program
  scores every mix, at the cost of the big model.

  Args:
    params: of the big model, layers looped or scanned.
    names: the same tree of `Axes`.
    sizes: hidden units kept in each layer; a mixer in no layer (of a pooling
      head) has those of the last, as `spec.resolve` gives it.
  """
  named, flat = tree.flatten(names), tree.flatten(params)
  out = {}
  for path, x in flat.items():
    axes = named[path]
    roles = [axes_lib.role(name) for name in axes.names]
    if "mlp" in [axes_lib.role(name) for name in axes.fan_in]:
      dim = roles.index("mlp")
      layer = layer_of(path)
      kept = sizes[-1:] if layer is None else [sizes[layer]]
      lead = "layers" in roles
      keep = np.arange(x.shape[dim]) < np.asarray(
        sizes if lead else kept
      ).reshape(-1, 1)
      shape = [1] * len(x.shape)
      shape[dim] = x.shape[dim]
      if lead:
        shape[roles.index("layers")] = len(sizes)
      x = x * keep.reshape(shape)
    out[path] = x
  return tree.like(params, out)
