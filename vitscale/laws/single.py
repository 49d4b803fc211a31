"""Laws of one variable: powers, floors, shifts, breaks.

Losses are nats (or an error rate).
"""

from vitscale.core.errors import UserError
from vitscale.laws.forms import Law, Parameter, exponent, positive
from vitscale.laws.numeric import namespace, raised, root

_PATCHES = (
  "Wang et al. 2025, arXiv 2502.03738, scaling figure (log-log; the constants"
  " are not printed, the offset is read off the tick spacing)"
)


def ones(x):
  return namespace(x).ones_like(x)


def _power(x, shape):
  return (raised(x[0], shape[0]),)


def _constant_power(x, shape):
  return ones(x[0]) + 0 * shape[0], raised(x[0], shape[0])


def _constant_falling(x, shape):
  return ones(x[0]) + 0 * shape[0], raised(x[0], -shape[0])


def _shifted(x, shape):
  gamma, c = shape
  return (raised(1 / x[0] + gamma, c),)


def power(
  variable: str = "p",
  *,
  exponent: tuple[float, float] = (-5.0, 5.0),
  source: str = _PATCHES,
) -> Law:
  """`L = c p^a`: no floor, a straight line in log-log axes."""
  return Law(
    name="power",
    formula=f"L = c {variable}^a",
    variables=(variable,),
    linear=(positive("c", f"loss at {variable} = 1"),),
    shape=(Parameter("a", *exponent, meaning="exponent"),),
    basis=_power,
    source=source,
  )


def power_constant(
  variable: str = "p",
  *,
  exponent: tuple[float, float] = (-5.0, 5.0),
  source: str = _PATCHES,
) -> Law:
  """`L = L0 + c p^a`: a power law above the floor L0 >= 0 (M2)."""
  return Law(
    name="power_constant",
    formula=f"L = L0 + c {variable}^a",
    variables=(variable,),
    linear=(
      positive("L0", "irreducible loss"),
      positive("c", f"reducible loss at {variable} = 1"),
    ),
    shape=(Parameter("a", *exponent, meaning="exponent"),),
    basis=_constant_power,
    source=source,
  )


def _henighan_scale(p):
  return {"x0": p["A"] ** (1 / p["alpha"]) if p["alpha"] else 0.0}


def henighan(variable: str = "N") -> Law:
  """`L = Linf + (x0/x)^alpha`, x0 the scale where 1 nat is reducible."""
  return Law(
    name="henighan",
    formula=f"L = Linf + (x0/{variable})^alpha = Linf + A {variable}^-alpha",
    variables=(variable,),
    linear=(positive("Linf", "irreducible loss"), positive("A", "x0^alpha")),
    shape=(exponent("alpha"),),
    basis=_constant_falling,
    source="Henighan et al. 2020, arXiv 2010.14701, eq. 1.1",
    derived=_henighan_scale,
  )


def shifted(variable: str = "x") -> Law:
  """`L = beta (1/x + gamma)^c`: saturates at beta gamma^c (M3)."""
  return Law(
    name="shifted",
    formula=f"L = beta (1/{variable} + gamma)^c",
    variables=(variable,),
    linear=(positive("beta", "scale"),),
    shape=(
      Parameter("gamma", 1e-8, 1e3, "1/x at saturation", True, f"1/{variable}"),
      exponent("c"),
    ),
    basis=_shifted,
    source="Alabdulmohsin et al. 2022, arXiv 2209.06640, section 3 (M3)",
  )


def _m4(x, values):
  """Solves (y - e) / (e0 - y)^alpha = beta x^-c for y."""
  floor, span, beta, c, alpha = values
  xp = namespace(x[0], *values)
  right = xp.log(beta) - c * xp.log(x[0])
  tiny = 1e-300

  def gap(v):  # v = y - e, between 0 and e0 - e
    rest = xp.maximum(span - v, tiny)
    return xp.log(xp.maximum(v, tiny)) - alpha * xp.log(rest) - right

  def slope(v):
    return 1 / xp.maximum(v, tiny) + alpha / xp.maximum(span - v, tiny)

  whole = span + 0 * right
  return floor + root(gap, 0 * whole, whole, slope, right)


def saturating(variable: str = "x") -> Law:
  """`(y - Linf) / (L0 - y)^alpha = beta x^-c`: from chance to floor (M4).

  `span` is L0 - Linf. `released.py` holds the estimator of the paper's code.
  """
  return Law(
    name="saturating",
    formula=f"(L - Linf) / (Linf + span - L)^alpha = beta {variable}^-c",
    variables=(variable,),
    linear=(),
    shape=(
      Parameter("Linf", 1e-6, 1.0, "irreducible loss", True, "floor"),
      Parameter("span", 0.5, 50.0, "loss at chance - Linf", True, "loss"),
      Parameter("beta", 1e-12, 1e12, "scale", True),
      exponent("c"),
      Parameter("alpha", 0.0, 5.0, "how slowly it leaves chance"),
    ),
    basis=None,
    value=_m4,
    source="Alabdulmohsin et al. 2022, arXiv 2209.06640, section 3 (M4)",
  )


def _broken(breaks):
  def basis(x, shape):
    xp = namespace(x[0], *shape)
    ln = xp.log(x[0])
    total = -shape[0] * ln
    for i in range(breaks):
      c, d, f = shape[1 + 3 * i : 4 + 3 * i]
      total = total - c * f * xp.logaddexp(0.0, (ln - xp.log(d)) / f)
    return ones(total), xp.exp(total)

  return basis


def bnsl(breaks: int = 1, variable: str = "x") -> Law:
  """Broken neural scaling law: powers joined by smooth breaks.

  Two breaks are recovered from noise-free points; with three (eleven
  parameters) the default 48 starts miss the optimum at times: look at
  `fit.search["agree"]`.

  Raises:
    UserError: not one to three breaks.
  """
  if not 1 <= breaks <= 3:
    raise UserError(f"bnsl has {breaks} breaks, want 1, 2 or 3")
  shape = [exponent("c0")]
  for i in range(1, breaks + 1):
    shape += [
      exponent(f"c{i}", "change of exponent", high=5.0),
      Parameter(f"d{i}", 1e-3, 1e3, "where it breaks", True, variable),
      Parameter(f"f{i}", 0.02, 5.0, "width of the break", True),
    ]
  return Law(
    name=f"bnsl{breaks}",
    formula=f"L = a + b {variable}^-c0 prod_i (1 + ({variable}/d_i)^(1/f_i))"
    "^(-c_i f_i)",
    variables=(variable,),
    linear=(positive("a", "irreducible loss"), positive("b", "scale")),
    shape=tuple(shape),
    basis=_BROKEN[breaks],
    source="Caballero et al. 2022, arXiv 2210.14891, eq. 1",
  )


_BROKEN = {n: _broken(n) for n in (1, 2, 3)}


def _zhai(x, shape):
  b, d = shape
  return ones(x[0]) + 0 * b, raised(x[0] + d, -b)


def zhai(variable: str = "C") -> Law:
  """`L = c + a (C + d)^-b`: saturates at both ends."""
  return Law(
    name="zhai",
    formula=f"L = c + a ({variable} + d)^-b",
    variables=(variable,),
    linear=(positive("c", "irreducible loss"), positive("a", "scale")),
    shape=(
      exponent("b"),
      Parameter("d", 1e-9, 1e3, "compute at saturation", True, variable),
    ),
    basis=_zhai,
    source="Zhai et al. 2021, arXiv 2106.04560, section 3.1",
  )


def tokenizer() -> Law:
  """`L = L0 + c E^-a`: reconstruction against E, floats in the code."""
  return Law(
    name="tokenizer",
    formula="L = L0 + c E^-a",
    variables=("E",),
    linear=(positive("L0", "floor"), positive("c", "loss at E = 1")),
    shape=(exponent("a", high=5.0),),
    basis=_constant_falling,
    source="Hansen-Estruch et al. 2025, arXiv 2501.09755, section 3.1 (ViTok)",
  )


def patch() -> Law:
  """`L = L0 + c p^a`: loss against the patch size p in pixels."""
  return power_constant("p", exponent=(0.0, 5.0))
