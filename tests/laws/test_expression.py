"""Laws from text: the built-ins written out, refusals, derivatives."""

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws import registry, solve
from vitscale.laws.expression import law

RNG = np.random.default_rng(0)
N = np.exp(RNG.uniform(18, 23, 60))
D = np.exp(RNG.uniform(20, 26, 60))
P = np.exp(RNG.uniform(0, 3, 40))
CHINCHILLA = {"E": 1.7, "A": 400.0, "B": 410.0, "alpha": 0.34, "beta": 0.28}
slow = lambda *case: pytest.param(*case, marks=pytest.mark.slow)
CASES = [
  ("E + A/N^alpha + B/D^beta", laws.chinchilla(), CHINCHILLA,
   {"N": N, "D": D}, {}),
  ("L0 + c*p^a", laws.power_constant("p"), {"L0": 0.3, "c": 0.1, "a": 0.5},
   {"p": P}, {"a": (-5, 5)}),
  ("L = E + (a*M^eta + b*M**-eta) * C^-eta", laws.gadre(),
   {"E": 1.5, "a": 141.0, "b": 190.0, "eta": 0.12},
   {"C": 6 * N * D, "M": D / N}, {"eta": (0, 1.5)}),
  ("c + a*(C + d)^-b", laws.zhai(), {"c": 0.1, "a": 0.6, "d": 0.5, "b": 0.3},
   {"C": P}, {}),
]  # fmt: skip


@pytest.mark.parametrize(
  "case",
  [*CASES[:2], *map(slow, CASES[2:])],
  ids=lambda case: case[1].name,
)
def test_a_built_in_written_out_has_the_same_optimum(case):
  text, built, truth, x, bounds = case
  mine = law(text, tuple(x), bounds)
  noise = np.random.default_rng(1).standard_normal(len(next(iter(x.values()))))
  data = {**x, "loss": built(truth, **x) * np.exp(0.01 * noise)}
  np.testing.assert_allclose(mine(truth, **x), built(truth, **x), rtol=1e-13)
  assert {p.name for p in mine.linear} == {p.name for p in built.linear}
  ours, theirs = (laws.fit(f, data, bootstrap=0) for f in (mine, built))
  assert ours.objective == pytest.approx(theirs.objective, rel=1e-9)
  for name, value in theirs.params.items():
    assert ours.params[name] == pytest.approx(value, rel=1e-5), name


def test_equal_formulas_are_one_law_and_one_program():
  one = law("E + A/N^alpha", ("N",))
  two = law("  E+ A / N ** alpha ", ["N"], {})
  assert one == two and hash(one) == hash(two)
  assert one != law("E + A/N^alpha", ("N",), {"alpha": (0, 1)})
  data = {"N": N, "loss": one({"E": 1.0, "A": 50.0, "alpha": 0.3}, N=N)}
  laws.fit(one, data, bootstrap=0)
  before = solve._program.cache_info().currsize
  laws.fit(two, data, bootstrap=0)
  assert solve._program.cache_info().currsize == before


@pytest.mark.parametrize(
  ("text", "truth", "bounds"),
  [
    ("E - p*log(N)", {"E": 5.0, "p": 0.1}, {}),
    ("E + (x0/N)^alpha", {"E": 1.0, "x0": 1e9, "alpha": 0.5}, {}),
    slow("1.5 + A/N^alpha", {"A": 50.0, "alpha": 0.3}, {}),
    slow("E + k*log(N)", {"E": 5.0, "k": -0.1}, {"k": (-np.inf, np.inf)}),
    slow("exp(a - b*log(N))", {"a": 3.0, "b": 0.1},
         {"a": (0, 10), "b": (0, 1)}),
  ],
)  # fmt: skip
def test_recovery_of_forms_that_no_built_in_has(text, truth, bounds):
  mine = law(text, ("N",), bounds)
  hidden = {p.name: dict(mine.pinned).get(p.name) for p in mine.parameters}
  loss = mine({**hidden, **truth}, N=N)
  fit = laws.fit(mine, {"N": N, "loss": loss}, bootstrap=0)
  for name, value in truth.items():
    assert fit.params[name] == pytest.approx(value, rel=1e-6), name


def test_which_parameters_are_linear_and_how_the_others_are_bounded():
  mine = law("E + A*x^-a - F*(1 + x/d)^(1/f)", ("x",), {"E": (0.1, 2)})
  assert [p.name for p in mine.linear] == ["A", "F", "1"]
  bounds = {p.name: (p.low, p.high, p.log, p.per) for p in mine.shape}
  assert bounds == {
    "E": (0.1, 2, False, ""), "a": (0, 3, False, ""),
    "d": (1e-6, 1e6, True, "x"), "f": (0, 3, False, ""),
  }  # fmt: skip
  assert mine.linear[1].low == 0  # F >= 0 is subtracted
  at = {
    **dict(mine.pinned),
    "E": 2.0,
    "A": 3.0,
    "a": 0.5,
    "F": 0.1,
    "d": 2.0,
    "f": 0.5,
  }
  assert mine(at, x=4.0) == pytest.approx(2 + 3 / 2 - 0.1 * 9)


def test_derivatives_are_those_of_the_formula():
  import jax

  text = "E + A*x^-a - F*sqrt(1 + x/d)^2 + exp(-x*k)*max(log10(x), 0.5)/x"
  mine = law(text, ("x",))
  truth = {"E": 1.0, "A": 2.0, "F": 0.1, "1": 1.0, "a": 0.4, "d": 3.0, "k": 0.1}
  x, values = [P[:6]], np.array([truth[k] for k in mine.names])
  with jax.enable_x64(True):
    jacobian = jax.jit(jax.jacfwd(lambda v: mine.at(x, list(v))))(values)
  for i, size in enumerate(np.abs(values) * 1e-6):
    ends = [mine.at(x, list(values + s * size * np.eye(len(values))[i]))
            for s in (-1, 1)]  # fmt: skip
    np.testing.assert_allclose(
      jacobian[:, i], (ends[1] - ends[0]) / (2 * size), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("__import__('os').system('true') + N", "character 1"),
    ("().__class__ + N", "not allowed"),
    ("E + N.real", "character 5: 'N.real'"),
    ("E + a[0]*N", "'a[0]'"),
    ("(lambda: N)()", "not allowed"),
    ("[E for E in N]", "not allowed"),
    ("N if E else 1", "not allowed"),
    ("E + True*N", "'True'"),
    ("E + 'a'*N", "not allowed"),
    ("E + (y := N)", "not allowed"),
    ("E + N; import os", "character 6"),
    ("E + exp(*N)", "not allowed"),
    ("E + exp(x=N)", "not allowed"),
    ("9^9^9^9*E*N", "not a finite number"),
    ("E + 1/0*N", "not a finite number"),
    ("-" * 400 + "N*E", "formula"),
    ("(" * 240 + "N*E" + ")" * 240, "formula"),
    ("E + " * 200 + "N", "1 to 500"),
    ("", "1 to 500"),
  ],
)
def test_what_is_no_arithmetic_is_refused(text, says):
  with pytest.raises(UserError) as error:
    law(text, ("N",))
  assert says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("text", "bounds", "says"),
  [
    ("E + A N^-a", {}, "character 7: expected an operator"),
    ("E + A/(N^a", {}, "character 7"),
    ("E + logg(N)", {}, "no function 'logg', did you mean 'log'"),
    ("E + log*N", {}, "'log' is a function"),
    ("E + log(N, 2)", {}, "log takes 1"),
    ("E + A/M^a", {}, "has no 'N'"),
    ("log(N)", {}, "no parameter"),
    ("E + F + A/N^a", {}, "E and F before the same term"),
    ("A*B/N^a", {}, "give --bound B=LOW:HIGH"),
    ("E + A/N^a", {"b": (0, 1)}, "no parameter 'b'"),
    ("E + A/N^a", {"a": (1, 0)}, "1 is not below 0"),
    ("E + A/N^a", {"a": (0, 1, "log")}, "not positive"),
    ("E + A/N^a", {"a": (0, np.inf)}, "must be finite"),
    ("E + A/N^a", {"A": (1, np.inf)}, "linear in A"),
    ("+".join(f"p{i}*N^{i}" for i in range(20)), {}, "20 parameters"),
  ],
)
def test_mistakes_are_named(text, bounds, says):
  with pytest.raises(UserError) as error:
    law(text, ("N",), bounds)
  assert says in str(error.value) and "\n" not in str(error.value)


def test_a_formula_on_the_command_line_knows_the_columns():
  found, said = registry.find("E + A/N^a + B/D^b", ["N", "C", "loss"])
  assert found.variables == ("N", "D") and "N, D are data" in said[0]
  free, _ = registry.find("C + A/N^a", ["N", "D"], {"C": (0, np.inf)})
  assert free.variables == ("N",)
  named, said = registry.find("zhai", [], {"b": (0, 1)})
  assert not said and {p.name: p.high for p in named.shape}["b"] == 1
  for text, says in (
    ("power-constant", "did you mean 'power_constant'"),
    ("E + A/x^a", "no name in it is a column"),
    ("loss + A/N^a", "holds the loss"),
    ("chinchila", "did you mean 'chinchilla'"),
  ):
    with pytest.raises(UserError, match=says):
      registry.find(text, ["N", "D"])


def test_bounds_of_built_in_laws():
  for bounds, says in (
    ({"alpa": (0, 1)}, "did you mean 'alpha'"),
    ({"A": (1, 10)}, "linear in A"),
    ({"alpha": (0, np.inf)}, "must be finite"),
  ):
    with pytest.raises(UserError, match=says):
      laws.chinchilla().bound(bounds)
  free = laws.chinchilla().bound({"E": (-np.inf, np.inf), "alpha": (0.1, 0.5)})
  assert free.linear[0].low == -np.inf and free.shape[0].high == 0.5


def test_a_variable_may_be_called_params():
  mine = law("c * params ^ a", variables=("params",))
  assert np.isclose(mine({"c": 2.0, "a": 1.0}, params=3.0), 6.0)
