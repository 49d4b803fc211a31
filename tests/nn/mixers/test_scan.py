"""The selective scan against its recurrence, one token after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.mixers import util
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn import mixers
from vitscale.nn.mixers import scan

N, WIDTH = 10, 16  # ten tokens: three chunks of four, padding
X = jax.random.normal(jax.random.key(0), (2, N, WIDTH))


def mixer():
  return mixers.parse("scan(4, rank=2)")(WIDTH, util.HEADS, util.HEAD_DIM)


def call(m, x, lengths=None):
  parts = m.heads(x, batch=len(x))
  return m.merge(m.attend(*parts, lengths=lengths), flat=False)


@pytest.fixture(scope="module")
def variables():
  made = axes.unbox(mixer().init(jax.random.key(1), X, method=call))
  noise = lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape)
  return jax.tree.map(noise, made)


@pytest.fixture
def apply(variables):
  made = mixer()
  return jax.jit(lambda x, n=None: made.apply(variables, x, n, method=call))


def by_hand(p, u):
  """One direction, (n, h, c) float64, as the module's docstring says."""
  silu = lambda x: x / (1 + np.exp(-x))
  past = np.concatenate([np.zeros((3, *u.shape[1:])), u])
  taps = [np.sum(p["kernel"] * past[t : t + 4], 0) for t in range(len(u))]
  u = silu(np.stack(taps) + p["bias"])
  state, out = np.zeros((*u.shape[1:], 4)), []
  for now in u:
    b, c, low = (
      np.einsum("hc,hcn->n", now, p[k]["kernel"]) for k in ("b", "c", "low")
    )
    raw = np.einsum("r,rhc->hc", low, p["delta"]["kernel"]) + p["start"]
    delta = np.log1p(np.exp(raw))[..., None]
    state = np.exp(delta * -np.exp(p["rate"])) * state
    state = state + delta * b * now[..., None]
    out.append(state @ c + p["skip"] * now)
  return np.stack(out)


def test_scan_is_the_recurrence(variables, apply):
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
  into = lambda q, x: np.einsum("nd,dhc->nhc", x, q["kernel"]) + q["bias"]
  want = []
  for x in np.asarray(X, np.float64):
    u, z = into(p["value"], x), into(p["gate"], x)
    ahead = by_hand(p["forward"], u[..., :4])
    back = by_hand(p["backward"], u[::-1, :, 4:])[::-1]
    y = np.concatenate([ahead, back], -1) * (z / (1 + np.exp(-z)))
    y = np.einsum("nhc,hcd->nd", y, p["out"]["kernel"]) + p["out"]["bias"]
    want.append(y)
  util.close(apply(X), np.stack(want))


def test_padding_changes_nothing_in_either_direction(apply):
  lengths = jnp.array([6, N])
  got = apply(X.at[0, 6:].set(7.0), lengths)
  util.close(got[0, :6], apply(X[:1, :6])[0])
  util.close(got[1], apply(X)[1])


def test_halves_of_a_head_go_one_way_each(variables):
  made = mixer()
  attend = lambda x: made.apply(
    variables, x, method=lambda m, x: m.attend(*m.heads(x, batch=2))
  )
  moved = jnp.abs(attend(X) - attend(X.at[:, 4].add(1.0))).max((0, 2)) > 0
  assert not moved[:4, :4].any() and moved[4:, :4].all()  # forward
  assert moved[:5, 4:].all() and not moved[5:, 4:].any()  # backward


def test_delta_starts_between_its_bounds():
  start = scan._slowness(jax.random.key(0), (1000,), jnp.float32)
  delta = jax.nn.softplus(start)
  assert scan.FAST * 0.99 < delta.min() < 2 * scan.FAST
  assert scan.SLOW / 2 < delta.max() < scan.SLOW * 1.01


@pytest.mark.parametrize(
  "options, said",
  [
    ({"qk_norm": True}, "no qk_norm"),
    ({"local": True}, "glpe"),
    ({"head_dim": 7}, "even head_dim"),
    ({"state": 0}, "state and rank"),
  ],
)
def test_refuses(options, said):
  sizes = {"width": 16, "num_heads": 2, "head_dim": 8}
  made = scan.Mixer(**{**sizes, **options})
  with pytest.raises(UserError, match=said):
    jax.eval_shape(lambda x: made.init(jax.random.key(0), x, method=call), X)


def test_has_nothing_to_turn():
  rope = (jnp.ones((N, 4)), jnp.zeros((N, 4)))
  heads = lambda m, x: m.heads(x, batch=2, rope=rope)
  with pytest.raises(UserError, match="rope2d"):
    mixer().init(jax.random.key(0), X, method=heads)
