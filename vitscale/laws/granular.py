"""One law for all granularities of a nested model, some parameters in common.

MatFormer (2310.07707, section 4, table 3) fits `L = a (N D)^b + c` once to all
of its sizes and once to models trained apart. `joint.elastic` is that law, for
the points of one granularity or of all. Between them lie laws that share some
parameters: each granularity its own curve towards one floor, or one slope with
floors of their own.

    law = granular.elastic(4, shared="c")       # data: N, D, g = 1, 2, 3, 4
    fit = laws.fit(law, rows, groups="run")
    fit.ci()["a1"]

It is a formula like any other: `law.formula` goes to `vitscale fit --law`. Of
few sizes c is hardly determined, as b trades against it. At the five sizes of
MatLM, points made from the published fits, whose floors are .89 and 1.33, give
95 % intervals of [.79, .92] and [1.20, 1.35] with .1 % of noise, and of
[0, .97] and [0, 1.38] with .3 %: look at them before comparing floors.
"""

from vitscale.core.errors import UserError
from vitscale.laws import expression
from vitscale.laws.forms import Law

NAMES = "abc"
MOST = 4  # granularities: a formula has 16 parameters at most


def elastic(count: int, shared: str = "bc") -> Law:
  """`L = a (N D)^-b + c`, with a number for each granularity or one for all.

  Args:
    count: granularities, 2 to 4; the data's column `g` numbers them from 1.
      N is the size of the part, D what it was trained on.
    shared: which of "a", "b", "c" all have in common; not all three, which
      `joint.elastic` is.

  Returns:
    A law of N, D and g. A parameter of one granularity has its number behind
    its name: `a1`. (Signs are those of `joint.elastic`: the paper's b is -b.)

  Raises:
    UserError: no such parameter, nothing or too many to tell apart.
  """
  if not 2 <= count <= MOST:
    raise UserError(f"{count} granularities in one law: want 2 to {MOST}")
  if not set(shared) < set(NAMES):
    raise UserError(f"shared {shared!r}: want some of a, b, c, not all")
  one = lambda name, g: name if name in shared else f"{name}{g}"
  floors = [one("c", g) for g in range(1, count + 1)]
  terms = ["c"] if "c" in shared else [
    f"{floor}*{_is(g)}" for g, floor in enumerate(floors, 1)
  ]  # fmt: skip
  fall = lambda g: f"(N*D)^-{one('b', g)}"
  sizes = range(1, count + 1)
  if shared.count("b"):
    scales = "a" if "a" in shared else (
      "(" + " + ".join(f"a{g}*{_is(g)}" for g in sizes) + ")"
    )  # fmt: skip
    terms.append(f"{scales}*(N*D)^-b")
  elif "a" in shared:
    falls = " + ".join(f"{_is(g)}*{fall(g)}" for g in sizes)
    terms.append(f"a*({falls})")
  else:
    terms += [f"{one('a', g)}*{_is(g)}*{fall(g)}" for g in sizes]
  return expression.law(" + ".join(terms), ("N", "D", "g"), name="granular")


def _is(g: int) -> str:
  """1 where the column `g` is this number, 0 where it is another integer."""
  return f"max(0, 1 - max(g - {g}, {g} - g))"
