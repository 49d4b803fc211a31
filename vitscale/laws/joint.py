"""Laws of several variables: size, data, compute, shapes, nests.

Losses are nats; N counts parameters, D tokens or examples, C FLOPs.
"""

from vitscale.laws.forms import Law, Parameter, exponent, positive
from vitscale.laws.numeric import namespace, raised
from vitscale.laws.single import ones


def _chinchilla(x, shape):
  (n, d), (alpha, beta) = x, (shape[0], shape[-1])
  one = ones(n) + 0 * alpha
  return one, raised(n, -alpha), raised(d, -beta)


def chinchilla(tied: bool = False) -> Law:
  """`L = E + A/N^alpha + B/D^beta`; `tied`: one exponent for both."""
  linear = (
    positive("E", "irreducible loss"),
    positive("A", "cost of finite size"),
    positive("B", "cost of finite data"),
  )
  shape = (
    (exponent("alpha"),) if tied else (exponent("alpha"), exponent("beta"))
  )
  return Law(
    name="chinchilla_tied" if tied else "chinchilla",
    formula="L = E + A/N^alpha + B/D^alpha"
    if tied
    else "L = E + A/N^alpha + B/D^beta",
    variables=("N", "D"),
    linear=linear,
    shape=shape,
    basis=_chinchilla,
    source="Hoffmann et al. 2022, arXiv 2203.15556, section 3.3, eq. 10",
    derived=_allocation,
  )


def _allocation(p):
  """Exponent of N*(C) and the factor G of section 3.3, eq. 4."""
  alpha, beta = p["alpha"], p.get("beta", p["alpha"])
  if not (alpha + beta > 0 and p["A"] > 0 and p["B"] > 0 and beta > 0):
    return {}
  g = (alpha * p["A"] / (beta * p["B"])) ** (1 / (alpha + beta))
  return {"a": beta / (alpha + beta), "b": alpha / (alpha + beta), "G": g}


def _kaplan(x, values):
  (n, d), (scale_n, scale_d, alpha_n, alpha_d) = x, values
  xp = namespace(n, *values)
  # (Nc/N)^(aN/aD) + Dc/D, to the power aD, with A = Nc^aN and B = Dc^aD.
  from_n = (xp.log(scale_n) - alpha_n * xp.log(n)) / alpha_d
  from_d = xp.log(scale_d) / alpha_d - xp.log(d)
  return xp.exp(alpha_d * xp.logaddexp(from_n, from_d))


def _kaplan_scales(p):
  return {
    "Nc": p["A"] ** (1 / p["alpha_N"]),
    "Dc": p["B"] ** (1 / p["alpha_D"]),
  }


def kaplan() -> Law:
  """`L = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D`, no irreducible loss."""
  return Law(
    name="kaplan",
    formula="L = ((Nc/N)^(alpha_N/alpha_D) + Dc/D)^alpha_D,"
    " A = Nc^alpha_N, B = Dc^alpha_D",
    variables=("N", "D"),
    linear=(),
    shape=(
      Parameter("A", 1e-3, 1e15, "Nc^alpha_N", True),
      Parameter("B", 1e-3, 1e15, "Dc^alpha_D", True),
      exponent("alpha_N", low=1e-3, high=1.5),
      exponent("alpha_D", low=1e-3, high=1.5),
    ),
    basis=None,
    value=_kaplan,
    source="Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5",
    derived=_kaplan_scales,
  )


def _ghorbani(x, shape):
  (enc, dec), (pe, pd) = x, shape
  return ones(enc) + 0 * pe, raised(enc, -pe) * raised(dec, -pd)


def ghorbani() -> Law:
  """`L = Linf + alpha Ne^-pe Nd^-pd`: encoder and decoder sizes."""
  return Law(
    name="ghorbani",
    formula="L = Linf + alpha Ne^-pe Nd^-pd",
    variables=("Ne", "Nd"),
    linear=(positive("Linf", "irreducible loss"), positive("alpha", "scale")),
    shape=(exponent("pe"), exponent("pd")),
    basis=_ghorbani,
    source="Ghorbani et al. 2021, arXiv 2109.07740, section 3, eq. 3",
  )


def _gadre(x, shape):
  (c, m), (eta,) = x, shape
  fall = raised(c, -eta)
  return ones(c) + 0 * eta, raised(m, eta) * fall, raised(m, -eta) * fall


def gadre() -> Law:
  """`L = E + (a M^eta + b M^-eta) C^-eta`, M = D/N tokens a parameter."""
  return Law(
    name="gadre",
    formula="L = E + (a M^eta + b M^-eta) C^-eta",
    variables=("C", "M"),
    linear=(
      positive("E", "irreducible loss"),
      positive("a", "cost of finite size"),
      positive("b", "cost of finite data"),
    ),
    shape=(exponent("eta", high=1.5),),
    basis=_gadre,
    source="Gadre et al. 2024, arXiv 2403.08540, eq. 4",
  )


def _muennighoff(x, values):
  n, d, u = x
  floor, a, b, alpha, beta, r_d, r_n = values
  xp = namespace(n, *values)
  ln_g = (xp.log(alpha * a) - xp.log(beta * b)) / (alpha + beta)
  # Parameters that the unique data can use: G (U G)^(beta/alpha).
  best = xp.exp(ln_g + (beta / alpha) * (xp.log(u) + ln_g))
  used = xp.minimum(n, best)
  extra_n = xp.maximum(n / used - 1, 0.0)
  extra_d = xp.maximum(d / u - 1, 0.0)
  size = used * (1 - r_n * xp.expm1(-extra_n / r_n))
  data = xp.minimum(d, u) * (1 - r_d * xp.expm1(-extra_d / r_d))
  return floor + a * raised(size, -alpha) + b * raised(data, -beta)


def muennighoff() -> Law:
  """Chinchilla with repeated data: D tokens seen, U of them unique.

  Repetitions and surplus parameters are worth exponentially less, with
  half-lives R_D and R_N.
  """
  return Law(
    name="muennighoff",
    formula="L = E + A/N'^alpha + B/D'^beta,"
    " D' = U (1 + R_D (1 - exp(-r/R_D))), r = D/U - 1, N' alike",
    variables=("N", "D", "U"),
    linear=(),
    shape=(
      Parameter("E", 0.05, 1.0, "irreducible loss", True, "floor"),
      Parameter("A", 1e-1, 1e8, "cost of finite size", True),
      Parameter("B", 1e-1, 1e8, "cost of finite data", True),
      exponent("alpha", low=0.02, high=1.5),
      exponent("beta", low=0.02, high=1.5),
      Parameter("R_D", 0.1, 1e3, "decay of repeated data", True),
      Parameter("R_N", 0.1, 1e3, "decay of surplus parameters", True),
    ),
    basis=None,
    value=_muennighoff,
    source="Muennighoff et al. 2023, arXiv 2305.16264, section 3, eqs. 5-6",
  )


# ------------------------------------------------------ shapes, nests, codes


def _shape(x, shape):
  (size, t), (a, b, c) = x, shape
  fade = raised(t, -c)
  one = ones(size) + 0 * a
  return one, raised(size, -a) + 0 * fade, raised(size, b) * fade, fade * one


def _shape_growth(p):
  return {"s": p["c"] / (p["a"] + p["b"])} if p["a"] + p["b"] > 0 else {}


def sovit() -> Law:
  """`L = eps + alpha x^-a + (beta x^b + xi) t^-c`: one shape dimension x.

  t is compute; the best x grows as t^(c / (a + b)).
  """
  return Law(
    name="sovit",
    formula="L = eps + alpha x^-a + (beta x^b + xi) t^-c",
    variables=("x", "t"),
    linear=(
      positive("eps", "irreducible loss"),
      positive("alpha", "cost of a small dimension"),
      positive("beta", "cost of training a large one"),
      positive("xi", "cost of finite compute"),
    ),
    shape=(exponent("a"), exponent("b"), exponent("c")),
    basis=_shape,
    source="Alabdulmohsin et al. 2023, arXiv 2305.13035, eq. 2",
    derived=_shape_growth,
  )


def _product(x, shape):
  (n, d), (b,) = x, shape
  return ones(n) + 0 * b, raised(n, -b) * raised(d, -b)


def elastic() -> Law:
  """`L = c + a (N D)^-b`, one law per granularity of a nested model."""
  return Law(
    name="elastic",
    formula="L = c + a (N D)^-b",
    variables=("N", "D"),
    linear=(positive("c", "irreducible loss"), positive("a", "scale")),
    shape=(exponent("b"),),
    basis=_product,
    source="Devvrit et al. 2023, arXiv 2310.07707, section 4 (MatFormer)",
  )
