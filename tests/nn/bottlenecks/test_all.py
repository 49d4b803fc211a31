"""What every bottleneck has to do, and what `parse` refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.bottlenecks import util
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn import bottlenecks

ALL = {  # name -> text, c, penalties, bound of |z|
  "plain": ("plain(6)", 6, set(), None),
  "kl": ("kl(6)", 6, {"kl"}, None),
  "layernorm": ("layernorm(6)", 6, set(), 6**0.5),
  "vq": ("vq(12, 5)", 5, {"codebook", "commit"}, None),
  "vq_ema": ("vq(12, 5, ema=0.9)", 5, {"commit"}, None),
  "residual_vq": (
    "residual_vq(12, 5, (2, 4))", 5, {"codebook", "commit"}, None,
  ),
  "fsq": ("fsq((4, 3, 2))", 3, set(), 1.0),
  "lfq": ("lfq(4)", 4, {"commit", "entropy"}, 1.0),
}  # fmt: skip
MORE = {"residual_vq": 4}  # indices besides one a token
X = util.drawn(3, 16, 16)


def test_every_bottleneck_is_here():
  """`vq_ema` is `vq` with another codebook."""
  assert {*bottlenecks.names(), "vq_ema"} == set(ALL)


@functools.cache
def ran(name):
  """(z, out) in evaluation, in training and in bfloat16, and z of indices."""
  made, variables = util.initial(ALL[name][0])
  half = bottlenecks.parse(ALL[name][0])(dtype="bfloat16")

  @jax.jit
  def run(v, x):
    keys = {"latent": jax.random.key(0)}
    plain = made.apply(v, x, train=False)
    found = plain[1].get("indices")
    return {
      "plain": plain,
      "train": made.apply(v, x, train=True, rngs=keys),
      "half": half.apply(v, x.astype(jnp.bfloat16), train=False),
      "codes": None if found is None else made.apply(v, found, method="codes"),
    }

  return run(variables, X)


@pytest.mark.parametrize("name", ALL)
def test_contract(name):
  text, c, penalties, bound = ALL[name]
  assert bottlenecks.parse(text)().code == c
  z, out = ran(name)["plain"]
  assert z.shape == (3, 16, c) and z.dtype == jnp.float32
  assert bound is None or jnp.abs(z).max() <= bound + 1e-5
  assert set(out["penalties"]) == penalties
  for penalty in out["penalties"].values():
    assert penalty.shape == (3,) and penalty.dtype == jnp.float32
    assert np.isfinite(penalty).all()
  if "indices" in out:
    assert out["indices"].shape == (3, 16 + MORE.get(name, 0))
    assert out["indices"].dtype == jnp.int32
    util.close(ran(name)["codes"], z, 1e-6)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_names_its_axes(name):
  made = bottlenecks.parse(ALL[name][0])()
  init = lambda key: made.init(key, X, train=False)
  boxed = jax.eval_shape(init, jax.random.key(0))
  named = axes.names_of(boxed)["params"]
  shapes = axes.unbox(boxed)["params"]
  jax.tree.map(lambda a, x: len(a.names) == x.ndim or 1 / 0, named, shapes)
  kernels = {str(a) for a in jax.tree.leaves(named) if a.inputs}
  one = "embed -> code@moments code" if name == "kl" else "embed -> code"
  phi = {"kernel_h kernel_w code@in -> code"} if name in MORE else set()
  assert kernels == {one} | phi


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_parameter(name):
  """Of pixels and penalties, with tokens that differ."""
  made, variables = util.initial(ALL[name][0])
  weights = util.drawn(3, 16, made.code, seed=5)

  @jax.jit
  @jax.grad
  def grad(variables):
    keys = {"latent": jax.random.key(0)}
    z, out = made.apply(variables, X, train=True, rngs=keys)
    return (weights * z).sum() + sum(
      p.mean() for p in out["penalties"].values()
    )

  grads = grad(variables)["params"]
  for path, g in jax.tree_util.tree_flatten_with_path(grads)[0]:
    assert np.isfinite(g).all() and jnp.abs(g).max() > 0, path


@pytest.mark.parametrize("name", ALL)
def test_computes_in_bfloat16(name):
  """The linear map alone is rounded: z float32, and mostly the same."""
  (z, out), (rounded, more) = ran(name)["plain"], ran(name)["half"]
  assert rounded.dtype == jnp.float32
  assert jnp.median(jnp.abs(rounded - z)) < 0.03
  for key, penalty in out["penalties"].items():
    assert more["penalties"][key].dtype == jnp.float32
    util.close(more["penalties"][key], penalty, atol=0.05, rtol=0.05)
  if "indices" in out:  # a token on an edge may fall on the other side
    assert (out["indices"] == more["indices"]).mean() > 0.8
  else:
    assert 0 < jnp.abs(rounded - z).max() < 0.1


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_random_in_training_but_kl(name):
  same = np.array_equal(ran(name)["plain"][0], ran(name)["train"][0])
  assert same == (name != "kl")


def test_straight_through():
  value, x = util.drawn(50, seed=1), util.drawn(50, seed=2, scale=100)
  f = lambda x: bottlenecks.straight_through(value, x)
  np.testing.assert_array_equal(jax.jit(f)(x), value)
  weights = util.drawn(50, seed=3)
  got = jax.jit(jax.grad(lambda x: (weights * f(x)).sum()))(x)
  np.testing.assert_array_equal(got, weights)


def test_parse_is_cached_and_takes_names():
  assert bottlenecks.parse("kl(4)") is bottlenecks.parse("kl(4)")
  assert bottlenecks.parse("vq(entries=9, code=2)")().entries == 9
  assert bottlenecks.parse("vq(9, 2, 'cosine')")().distance == "cosine"
  assert bottlenecks.parse("fsq([3, 3])")().code == 2
  assert bottlenecks.parse("lfq(3, temperature=1)")().temperature == 1
  assert bottlenecks.parse("kl")(dtype="bfloat16").code == 16


@pytest.mark.parametrize(
  "text, said",
  [
    ("kll(4)", "no bottleneck 'kll', did you mean 'kl'"),
    ("kl(codes=4)", "no option 'codes', did you mean 'code'"),
    ("kl(4.0)", "code should be int, got 4.0"),
    ("kl(True)", "code should be int, got True"),
    ("kl(4, 5)", "takes code, got 2 values"),
    ("kl(4, dtype='bfloat16')", "no option 'dtype'"),
    ("kl(4, code=4)", "'code' is given twice"),
    ("lfq(4, 'warm')", "temperature should be float, got 'warm'"),
    ("fsq(8, 5, 5)", "takes levels, got 3 values"),
    ("kl 4", "cannot read"),
  ],
)
def test_text_that_says_nothing(text, said):
  with pytest.raises(UserError, match=said) as error:
    bottlenecks.parse(text)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text, said",
  [
    ("plain(0)", r"plain\(0\): code is 1 or more"),
    ("kl(0)", r"kl\(0\): code is 1 or more"),
    ("layernorm(2)", "code is 3 or more"),
    ("vq(1, 8)", "entries are 2 to"),
    ("vq(2147483649, 8)", "entries are 2 to 2147483648"),
    ("vq(8, 0)", "code is 1 or more"),
    ("vq(8, 1, 'cosine')", "code is 2 or more"),
    ("vq(8, 2, 'cosin')", "no distance 'cosin', did you mean 'cosine'"),
    ("vq(8, 2, 3)", "no distance 3"),
    ("fsq(8)", "levels are a tuple"),
    ("fsq(())", "levels are a tuple"),
    ("fsq((8, 1))", "1 levels; want integers of 2 to 65536"),
    ("fsq((8, 2.0))", "2.0 levels; want integers"),
    ("fsq((65536, 65536))", "4294967296 entries, more than"),
    ("lfq(0)", "bits are 1 to 31"),
    ("lfq(32)", "bits are 1 to 31"),
    ("lfq(4, 0)", "temperature is above 0"),
    ("lfq(4, -1.0)", "temperature is above 0"),
  ],
)
def test_options_that_make_no_sense(text, said):
  made = bottlenecks.parse(text)()
  init = lambda key: made.init(key, X, train=False)
  with pytest.raises(UserError, match=said) as error:
    jax.eval_shape(init, jax.random.key(0))
  assert "\n" not in str(error.value)
