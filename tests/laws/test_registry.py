"""Every law of the catalogue: formula, recovery without noise, gradients."""

import numpy as np
import pytest

from vitscale import laws
from vitscale.laws import registry, solve

RANGE = {"p": (1, 32), "M": (1, 600), "x": (1e2, 1e6), "t": (1, 1e4)}


def truth_of(law, rng, n=80):
  """Random points and parameters, every term of the law being felt."""
  low_high = [RANGE.get(v, (1e6, 1e10)) for v in law.variables]
  x = [np.exp(rng.uniform(*np.log(r), n)) for r in low_high]
  frame = solve.frame(law, x, np.ones(n))
  k = len(law.linear)
  t = rng.uniform(0.2, 1.0, len(law.parameters))
  width = frame.high[k:] - frame.low[k:]
  t[k:] = frame.low[k:] + width * rng.uniform(0.15, 0.5, len(law.shape))
  values = [float(v) for v in solve.outer(law, frame, t)]
  return x, dict(zip(law.names, values))


@pytest.mark.parametrize("name", registry.LAWS)
def test_recovery_without_noise(name):
  law, rng = registry.named(name), np.random.default_rng(1)
  for _ in range(3):
    x, truth = truth_of(law, rng)
    data = dict(zip(law.variables, x))
    data["loss"] = law(truth, **data)
    fit = laws.fit(law, data, bootstrap=0, starts=16)
    at = dict(zip(law.variables, x))
    np.testing.assert_allclose(fit.predict(**at), data["loss"], rtol=1e-8)
    if not fit.degenerate and fit.search["condition"] < 1e6:
      for key, value in truth.items():
        assert fit.params[key] == pytest.approx(value, rel=1e-6), key
