"""core/schedule: the factor on the learning rate, by step."""

import jax
import numpy as np
import pytest

from vitscale.core import optim


def test_schedules_end_where_they_should():
  make = optim.schedule
  cosine = make({"kind": "cosine", "warmup_steps": 10, "end": 0.1}, 110)
  np.testing.assert_allclose(
    cosine([0, 9, 10, 60, 110]), [0.1, 1, 1, 0.55, 0.1]
  )
  linear = make({"kind": "linear", "warmup_percent": 10}, 100)
  np.testing.assert_allclose(linear([4, 10, 55, 100]), [0.5, 1, 0.5, 0])
  rsqrt = make({"kind": "rsqrt", "timescale": 5, "cooldown_steps": 20}, 100)
  np.testing.assert_allclose(
    rsqrt([0, 15, 80, 90, 100]),
    [1, 0.5, 17**-0.5, 0.5 * 19**-0.5, 0],
    atol=1e-6,
  )
  wsd = make({"kind": "wsd"}, 100)
  np.testing.assert_allclose(wsd([0, 80, 85, 100]), [1, 1, 0.5, 0])
  constant = make({"kind": "constant"}, 100)
  assert constant(0) == constant(99) == 1


@pytest.mark.parametrize(
  "kind", ["constant", "cosine", "linear", "rsqrt", "wsd"]
)
def test_schedules_trace_and_stay_in_range(kind):
  factor = optim.schedule({"kind": kind, "warmup_steps": 7}, 50)
  steps = np.arange(60)  # a resumed run may ask beyond the end
  host, device = factor(steps), jax.jit(factor)(steps)
  np.testing.assert_allclose(host, device, atol=2e-6)
  assert (host >= 0).all() and (host <= 1).all() and host[0] > 0
