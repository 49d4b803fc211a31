"""Codes of all scales: the algorithm step by step, its parts, resizing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.nn.bottlenecks import util
from vitscale.core.errors import UserError
from vitscale.nn import bottlenecks
from vitscale.nn.bottlenecks import residual_vq

TEXT = "residual_vq(24, 4, (1, 2, 4))"
N, SIDES = 21, (1, 2, 4)


def smooth(n=16, seed=0):
  """Maps of 16 tokens whose neighbours are alike, (n, 16, 4)."""
  coarse, fine = util.drawn(n, 2, 2, 4, seed=seed), util.drawn(n, 16, 4, seed=9)
  wide = residual_vq.up(coarse, (4, 4)).reshape(n, 16, 4)
  return wide + 0.3 * fine


@functools.cache
def trained():
  """(module, variables) whose codebook and convolutions fit `smooth`."""
  made = bottlenecks.parse(TEXT)()
  _, variables = util.initial(TEXT, 4)
  linear = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
  variables = {"params": {**variables["params"], "project": linear}}
  optimizer, x = optax.adam(0.03), smooth(64)

  def loss(params):
    _, out = made.apply({"params": params}, x, train=True)
    return out["penalties"]["codebook"].mean()

  def step(carry, _):
    params, state = carry
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grads, state)
    return (optax.apply_updates(params, updates), state), value

  @jax.jit
  def fit(params):
    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, length=150)

  (params, _), values = fit(variables["params"])
  assert values[-1] < 0.5 * values[0]
  return made, {"params": params}


def apply(method, *args, **kwargs):
  made, variables = trained()
  call = lambda v, *a: made.apply(v, *a, method=method, **kwargs)
  return jax.jit(call)(variables, *args)


@functools.cache
def ran():
  return util.run(*trained(), smooth())


def test_the_algorithm_by_hand():
  """Nearest entry, up, half the convolution, subtract; in numpy, float64."""
  _, variables = trained()
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)[
    "params"
  ]
  book, y = params["codebook"], np.asarray(smooth(), np.float64)
  y = y.reshape(-1, 4, 4, 4)
  total, indices, far = np.zeros_like(y), [], []
  for k, side in enumerate(SIDES):
    cell = 4 // side
    small = (y - total).reshape(-1, side, cell, side, cell, 4).mean((2, 4))
    picked = np.square(small[..., None, :] - book).sum(-1).argmin(-1)
    indices.append(picked.reshape(len(y), -1))
    way = residual_vq.bicubic(side, 4)
    h = np.einsum("rh,sw,bhwc->brsc", way, way, book[picked])
    phi = params[f"phi_{k}"]
    wide = np.pad(h, [(0, 0), (1, 1), (1, 1), (0, 0)])
    conv = phi["bias"] + sum(
      wide[:, i : i + 4, j : j + 4] @ phi["kernel"][i, j]
      for i in range(3)
      for j in range(3)
    )
    total = total + (h + conv) / 2
    far.append(np.square(y - total).mean((1, 2, 3)))
  z, out = ran()
  np.testing.assert_array_equal(out["indices"], np.concatenate(indices, 1))
  util.close(z, total.reshape(z.shape), 1e-4)
  for penalty in out["penalties"].values():
    util.close(penalty, np.mean(far, 0), 1e-4)


def test_codes_of_the_indices_are_z():
  z, out = ran()
  assert out["indices"].shape == (16, N) and out["indices"].dtype == jnp.int32
  util.close(apply("codes", out["indices"]), z)
  assert 1 < out["perplexity"] <= 24


def test_every_scale_leaves_less():
  _, out = ran()
  total, left, y = None, [], smooth()
  for k, part in enumerate(residual_vq.split(out["indices"], SIDES)):
    total, _ = apply("add", total, part, k=k)
    left.append(float(jnp.square(y - total).mean()))
  assert left[2] < 0.9 * left[1] < 0.8 * left[0], left
  assert left[0] < float(jnp.square(y).mean())


def test_scale_by_scale_shows_what_teacher_forcing_shows():
  z, out = ran()
  shown = apply("inputs", out["indices"])
  assert shown.shape == (16, N - 1, 4)
  total, said = None, []
  for k, part in enumerate(residual_vq.split(out["indices"], SIDES)):
    total, following = apply("add", total, part, k=k)
    said.append(following)
  assert said.pop() is None
  util.close(jnp.concatenate(said, 1), shown)
  util.close(total, z)


def test_what_is_shown_is_of_coarser_scales_alone():
  _, out = ran()
  indices = out["indices"]
  shown = apply("inputs", indices)
  indices = indices.at[:, 1:5].set((indices[:, 1:5] + 1) % 24)  # the 2 x 2
  other = apply("inputs", indices)
  np.testing.assert_array_equal(other[:, :4], shown[:, :4])
  assert np.abs(other[:, 4:] - shown[:, 4:]).max(-1).min() > 0
  indices = indices.at[:, 5:].set(0)  # nothing is shown of the last
  np.testing.assert_array_equal(apply("inputs", indices), other)


def test_who_learns_from_what():
  made, variables = trained()
  x, weights = smooth(), util.drawn(16, 16, 4, seed=2)

  @jax.jit
  def grads(v, x):
    run = lambda v, x: made.apply(v, x, train=True)
    of = lambda f: jax.grad(f, (0, 1))(v, x)
    penalty = lambda name: of(
      lambda v, x: run(v, x)[1]["penalties"][name].sum()
    )
    z = of(lambda v, x: (weights * run(v, x)[0]).sum())
    return z, penalty("codebook"), penalty("commit")

  (z_own, z_x), (book_own, book_x), (commit_own, commit_x) = grads(variables, x)
  util.close(z_x, weights)  # straight through, the linear map being 1
  rest = lambda g: {k: v for k, v in g["params"].items() if k != "project"}
  for grad in (z_own, commit_own):
    assert not any(np.any(g) for g in jax.tree.leaves(rest(grad)))
  assert all(np.any(g) for g in jax.tree.leaves(rest(book_own)))
  assert not np.any(book_x) and np.any(commit_x)


def test_neighbouring_scales_share_a_convolution():
  """The published ten scales of four, and never one that nobody uses."""
  of = [residual_vq.shared(k, 9, 4) for k in range(10)]
  assert of == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
  for scales in range(1, 12):
    phis = min(4, scales)
    of = {residual_vq.shared(k, scales - 1, phis) for k in range(scales)}
    assert of == set(range(phis))


def test_area():
  np.testing.assert_allclose(
    residual_vq.area(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
  )
  third = 1 / 3  # cells 0 to 1.5 and 1.5 to 3, both touching the middle
  np.testing.assert_allclose(
    residual_vq.area(3, 2), [[0.5, 0.5, 0], [0, 0.5, 0.5]]
  )
  np.testing.assert_allclose(residual_vq.area(3, 1), [[third] * 3])
  np.testing.assert_array_equal(residual_vq.area(5, 5), np.eye(5))


def test_bicubic():
  np.testing.assert_array_equal(residual_vq.bicubic(5, 5), np.eye(5))
  for n, m in ((1, 7), (2, 5), (3, 16), (13, 16)):
    np.testing.assert_allclose(residual_vq.bicubic(n, m).sum(1), 1, atol=1e-6)
  # Half a cell off: the kernel at 1/4, 3/4, 5/4 and 7/4 with a = -3/4.
  row = residual_vq.bicubic(8, 16)[8]
  np.testing.assert_allclose(
    row[2:6], [-0.03515625, 0.26171875, 0.87890625, -0.10546875], atol=1e-6
  )
  assert not row[:2].any() and not row[6:].any()
  # Even maps stay even, and left and right are alike.
  np.testing.assert_allclose(
    residual_vq.bicubic(3, 16),
    residual_vq.bicubic(3, 16)[::-1, ::-1],
    atol=1e-6,
  )


@pytest.mark.parametrize(
  "text, said",
  [
    (
      "residual_vq(24, 4, (1, 2, 3))",
      "9 tokens; these are 16: end scales in 4",
    ),
    ("residual_vq(24, 4, (2, 1))", r"scales \(2, 1\) do not rise"),
    ("residual_vq(24, 4, (0, 4))", "sides of maps"),
    ("residual_vq(24, 4, ())", "sides of maps"),
    ("residual_vq(24, 4, 4)", "sides of maps"),
    ("residual_vq(1, 4, (1, 4))", "entries are 2 to"),
    ("residual_vq(24, 0, (1, 4))", "code and phis are 1 or more"),
    ("residual_vq(24, 4, (1, 4), 0)", "code and phis are 1 or more"),
  ],
)
def test_refuses(text, said):
  made = bottlenecks.parse(text)()
  init = lambda key: made.init(key, smooth(), train=False)
  with pytest.raises(UserError, match=said) as error:
    jax.eval_shape(init, jax.random.key(0))
  assert "\n" not in str(error.value)


def test_refuses_tokens_of_other_scales():
  with pytest.raises(UserError, match="have 21 tokens, these are 16"):
    apply("codes", jnp.zeros((1, 16), int))


def test_one_scale_is_shown_nothing():
  made, variables = util.initial("residual_vq(24, 4, (4,))", 4)
  z, out = util.run(made, variables, smooth())
  util.close(util.codes(made, variables, out["indices"]), z)
  shown = made.apply(variables, out["indices"], method="inputs")
  assert shown.shape == (16, 0, 4)
