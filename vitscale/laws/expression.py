"""Your own law from text: `law("E + A/N^alpha + B/D^beta", ("N", "D"))`.

The text is parsed into a tree of allowed operations and never executed. Names
that are no variables are parameters. A parameter that multiplies a whole term
of the sum, and stands nowhere else, is linear and solved exactly for every
choice of the others (`forms`); a formula without such terms is searched whole.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws.forms import Array, Bound, Law, Parameter, bound_of
from vitscale.laws.formula import Tree, names, parse, value
from vitscale.laws.frame import frame, outer
from vitscale.laws.numeric import namespace

Term = tuple[int, str | None, Tree]  # sign, linear parameter, its column

_MOST = 16  # parameters
_TRIES = 256  # of parameters, to see whether a formula has values
# Hidden parameters with a fixed value: the factor of the terms that have no
# linear parameter, and the one to search in a law that is linear altogether.
OFFSET = Parameter("1", 0.0, meaning="factor of the terms without another")
IDLE = Parameter("0", -1.0, 1.0, meaning="nothing to search")
HIDDEN = (OFFSET.name, IDLE.name)


def law(
  text: str,
  variables: Sequence[str],
  bounds: Mapping[str, Bound] | None = None,
  name: str = "formula",
) -> Law:
  """A law from its formula.

  Args:
    text: `+ - * / ^` (or `**`), numbers, parentheses and the functions exp,
      log, log10, sqrt, min, max of names; `L =` in front may stay.
    variables: which names are columns of the data; all others are unknown.
    bounds: parameter -> (low, high), searched on a logarithmic scale with
      (low, high, "log"). Without one, a linear parameter is not negative, one
      in an exponent lies in [0, 3], and one added to, dividing or multiplying
      a variable is searched over many times that variable's scale. A linear
      parameter may get (-inf, inf); with two finite bounds it is searched.
    name: what reports call the law.

  Returns:
    A law equal to any other of the same formula, variables and bounds.

  Raises:
    UserError: the text is no such formula (place and nearest name given), it
      has no variable or no parameter, or a parameter lacks bounds.
  """
  tree, formula = parse(text)
  count = Counter(names(tree))
  found = tuple(v for v in dict.fromkeys(variables) if v in count)
  parameters = tuple(p for p in count if p not in found)
  complain = lambda why: UserError(f"formula {formula!r} {why}")
  for v in variables:
    if v not in count:
      raise complain(f"has no {v!r}{nearest(v, count)}")
  if not found:
    raise complain(f"has no variable: {', '.join(count) or 'it has no names'}")
  if not parameters:
    raise complain("has no parameter: every name in it is a variable")
  if len(parameters) > _MOST:
    raise complain(f"has {len(parameters)} parameters, at most {_MOST} are")
  for p in bounds or {}:
    if p not in parameters:
      raise complain(f"has no parameter {p!r}{nearest(p, parameters)}")
  given = {p: bound_of(p, bound) for p, bound in (bounds or {}).items()}
  searched = {p for p, (_, high, _) in given.items() if math.isfinite(high)}
  once = {p for p in parameters if count[p] == 1} - searched
  terms = _terms(tree, once)
  linear = {p: (s, column) for s, p, column in terms if p is not None}
  twin = _twin(linear)
  if twin:
    raise complain(
      f"has {' and '.join(twin)} before the same term: leave one out"
    )
  powers = set(names(tree, exponents=True))
  shape = tuple(
    _shape(p, tree, found, powers, given.get(p), complain)
    for p in parameters
    if p not in linear
  )
  if not linear:
    whole = _Whole(tree, found, tuple(p.name for p in shape))
    return _law(name, formula, found, (), shape, value=whole)
  columns = list(linear.values())
  free = [
    _linear(p, given.get(p, (0.0, math.inf, False)), complain) for p in linear
  ]
  pinned = {}
  rest = [(s, column) for s, p, column in terms if p is None]
  if rest:
    columns.append((1, _sum(rest)))
    free.append(OFFSET)
    pinned[OFFSET.name] = 1.0
  if not shape:
    shape = (IDLE,)
    pinned[IDLE.name] = 0.0
  basis = _Columns(tuple(columns), found, tuple(p.name for p in shape))
  return _law(
    name, formula, found, tuple(free), shape, basis=basis,
    pinned=tuple(sorted(pinned.items())),
  )  # fmt: skip


def check_domain(law: Law, x: Sequence[Array], y: Array) -> None:
  """Raises UserError where a formula is not a number at any parameters tried.

  Args:
    law: what `law` made.
    x, y: one (n,) array per variable, and the losses; bad rows are skipped.
  """
  rows = np.all([np.isfinite(v) & (v > 0) for v in (*x, y)], axis=0)
  if not rows.any():
    return
  where = frame(law, [v[rows] for v in x], y[rows])
  k, tries = len(law.linear), np.random.default_rng(0).random
  low, high = where.low[k:], where.high[k:]
  t = low + (high - low) * tries((_TRIES, len(low)))
  t = np.concatenate([np.ones((_TRIES, k)), t], axis=-1)
  values = [v[:, None] for v in outer(law, where, t)]
  if not np.isfinite(law.at(list(where.x), values)).all(-1).any():
    raise UserError(
      f"formula {law.formula!r} is not a number on these data: it has a"
      " logarithm or power of a negative value, or overflows"
    )


def _law(name, formula, variables, linear, shape, **rest) -> Law:
  return Law(
    name=name,
    formula=f"L = {formula}",
    variables=variables,
    linear=linear,
    shape=shape,
    source="formula given by the user",
    **{"basis": None, **rest},
  )


def _evaluated(trees, variables, x, shape, values):
  """Each tree on numpy or traced arrays, all of the full broadcast shape."""
  given = dict(zip(variables + shape, (*x, *values)))
  with np.errstate(all="ignore"):  # the search may leave the domain
    xp, nothing = namespace(*x, *values), 0 * x[0] + 0 * values[0]
    return [value(xp, t, given) + nothing for t in trees]


@dataclasses.dataclass(frozen=True)
class _Columns:
  """A `Basis`: compared by content, so that equal formulas share a program."""

  columns: tuple[tuple[int, Tree], ...]
  variables: tuple[str, ...]
  shape: tuple[str, ...]

  def __call__(
    self, x: Sequence[Array], shape: Sequence[Array]
  ) -> tuple[Array, ...]:
    trees = [column for _, column in self.columns]
    found = _evaluated(trees, self.variables, x, self.shape, shape)
    return tuple(sign * v for (sign, _), v in zip(self.columns, found))


@dataclasses.dataclass(frozen=True)
class _Whole:
  """A `Value`, compared by content."""

  tree: Tree
  variables: tuple[str, ...]
  shape: tuple[str, ...]

  def __call__(self, x: Sequence[Array], values: Sequence[Array]) -> Array:
    return _evaluated([self.tree], self.variables, x, self.shape, values)[0]


# ------------------------------------------------------------ roles of names


def _terms(tree: Tree, once: set[str]) -> list[Term]:
  """The summands; a factor that is a name of `once` becomes linear.

  Sums with linear parameters are multiplied out, as in (a x + b y) z.
  """
  match tree:
    case str() if tree in once:
      return [(1, tree, 1.0)]
    case ("+", a, b):
      return _terms(a, once) + _terms(b, once)
    case ("-", a, b):
      return _terms(a, once) + _negative(_terms(b, once))
    case ("neg", a):
      return _negative(_terms(a, once))
    case ("*", a, b):
      bare = _is_scaled(b, once) and not _is_scaled(a, once)
      for one, other in ((b, a),) if bare else ((a, b), (b, a)):
        inside = _terms(one, once)
        if any(p for _, p, _ in inside):
          return [(s, p, _times(c, other)) for s, p, c in inside]
    case ("/", a, b):
      inside = _terms(a, once)
      if any(p for _, p, _ in inside):
        return [(s, p, ("/", c, b)) for s, p, c in inside]
  return [(1, None, tree)]


def _is_scaled(tree: Tree, once: set[str]) -> bool:
  """Whether a product has a factor that is linear by itself."""
  match tree:
    case ("*", a, b):
      return _is_scaled(a, once) or _is_scaled(b, once)
    case ("/" | "neg", a, *_):
      return _is_scaled(a, once)
  return tree in once


def _negative(terms: list[Term]) -> list[Term]:
  return [(-s, p, column) for s, p, column in terms]


def _times(a: Tree, b: Tree) -> Tree:
  return b if a == 1.0 else a if b == 1.0 else ("*", a, b)


def _sum(terms: list[tuple[int, Tree]]) -> Tree:
  total: Tree = 0.0
  for sign, column in terms:
    total = ("+" if sign > 0 else "-", total, column)
  return total


def _twin(linear: Mapping[str, tuple[int, Tree]]) -> list[str]:
  """Two parameters with the same column, or nothing."""
  for p, (_, column) in linear.items():
    for q, (_, other) in linear.items():
      if p != q and column == other:
        return [p, q]
  return []


def _linear(name, bound, complain) -> Parameter:
  if bound[0] not in (0, -math.inf):
    raise complain(
      f"is linear in {name}: its bounds are 0:inf, -inf:inf or two finite ones"
    )
  return Parameter(name, bound[0], meaning="factor of a term")


def _shape(name, tree, variables, powers, bound, complain) -> Parameter:
  """A parameter to search, with the user's bounds or natural ones."""
  if bound is not None:
    low, high, log = bound
    if math.isfinite(low) and math.isfinite(high):
      return Parameter(name, low, high, log=log)
    raise complain(f"is not linear in {name}: its bounds must be finite")
  if name in powers:
    return Parameter(name, 0.0, 3.0, "exponent")
  scale = _scale(tree, name, variables)
  if scale is None:
    raise complain(f"needs bounds of {name}: give --bound {name}=LOW:HIGH")
  low, high, per = scale
  return Parameter(name, low, high, f"in {per}", True, per)


def _scale(tree, name, variables) -> tuple[float, float, str] | None:
  """Natural bounds from what a parameter is added to or divides."""
  if not isinstance(tree, tuple):
    return None
  if name in tree[1:] and len(tree) == 3:
    op, a, b = tree
    other = b if a == name else a
    inverse = None
    if isinstance(other, tuple) and other[:2] == ("/", 1.0):
      inverse = other[2]
    if op == "+" and other in variables:
      return 1e-9, 1e3, other
    if op == "+" and inverse in variables:
      return 1e-9, 1e3, f"1/{inverse}"
    if op == "/" and other in variables:
      return 1e-6, 1e6, other
    if op == "*" and other in variables:
      return 1e-6, 1e6, f"1/{other}"
  inside = (_scale(part, name, variables) for part in tree[1:])
  return next((scale for scale in inside if scale), None)
