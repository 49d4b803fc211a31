"""core/tree: names, rules with full coverage, slicing by axis."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes, tree
from vitscale.core.axes import AxisError
from vitscale.core.errors import UserError

NAMES = {
  "block": {
    "up": axes.parse("embed -> mlp"),
    "down": axes.parse("mlp -> embed"),
    "bias": axes.parse("embed"),
  },
  "inner": axes.parse("embed -> embed@inner"),
  "qkv": axes.parse("embed -> qkv heads"),
}


def make(d=6, m=8, inner=6):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {
    "block": {"up": draw(d, m), "down": draw(m, d), "bias": draw(d)},
    "inner": draw(d, inner),
    "qkv": draw(d, 3, 2),
  }


def test_flatten_and_back():
  params = make()
  flat = tree.flatten(params)
  assert sorted(flat) == [
    "block/bias",
    "block/down",
    "block/up",
    "inner",
    "qkv",
  ]
  assert tree.flatten(flax.core.freeze(params)).keys() == flat.keys()
  again = tree.unflatten(flat)
  assert jax.tree.structure(again) == jax.tree.structure(params)
  assert again["block"]["up"] is params["block"]["up"]
  frozen = tree.like(flax.core.freeze(params), flat)
  assert isinstance(frozen, flax.core.FrozenDict)


def test_flatten_refuses_ambiguity():
  with pytest.raises(UserError, match="'/'"):
    tree.flatten({"a/b": 1})
  with pytest.raises(UserError, match="inside the leaf"):
    tree.unflatten({"a": 1, "a/b": 2})
  with pytest.raises(UserError, match="leaf and a branch"):
    tree.unflatten({"a/b": 2, "a": 1})


def test_match_takes_the_first_rule_that_fits():
  got = tree.match(make(), [(".*/bias", 0), ("block/.*", 1), (".*", 2)])
  assert got["block"] == {"up": 1, "down": 1, "bias": 0}
  assert got["inner"] == got["qkv"] == 2
  got = tree.match(make(), [("inner", 7)], default=None)
  assert got["inner"] == 7 and got["qkv"] is None


@pytest.mark.parametrize(
  ("rules", "says"),
  [
    ([("block/.*", 1)], "no rule for 2 parameters: inner, qkv"),
    ([("block/bais", 1), (".*", 0)], "did you mean 'block/bias'"),
    ([(".*", 0), ("inner", 1)], "'inner' is never reached"),
    ([("(", 0)], "bad regex"),
    ([("bias", 1), (".*", 0)], "fits no parameter"),  # the whole path counts
  ],
)
def test_match_covers_leaves_and_rules(rules, says):
  with pytest.raises(UserError, match=says) as error:
    tree.match(make(), rules, what="lr_mult")
  assert str(error.value).startswith("lr_mult:")
  assert "\n" not in str(error.value)


def test_partition_and_merge():
  params = make()
  chosen, rest = tree.partition(params, "block/.*")
  assert sorted(chosen["block"]) == ["bias", "down", "up"]
  assert sorted(rest) == ["inner", "qkv"]
  whole = tree.merge(chosen, rest)
  assert jax.tree.structure(whole) == jax.tree.structure(params)
  with pytest.raises(UserError, match="more than one tree"):
    tree.merge(params, chosen)
  with pytest.raises(UserError, match="fits no parameter"):
    tree.partition(params, "blocks/.*")


def test_slice_by_prefix_role_and_scope():
  params = make()
  got = tree.slice_axes(params, NAMES, {"mlp": 3})
  np.testing.assert_array_equal(
    got["block"]["up"], params["block"]["up"][:, :3]
  )
  np.testing.assert_array_equal(
    got["block"]["down"], params["block"]["down"][:3]
  )
  assert got["block"]["bias"] is params["block"]["bias"]
  got = tree.slice_axes(params, NAMES, {"embed": 4})
  assert got["inner"].shape == (4, 4)  # a bare role takes every scope
  got = tree.slice_axes(params, NAMES, {"embed": 4, "embed@inner": 2})
  assert got["inner"].shape == (4, 2)
  got = tree.slice_axes(params, NAMES, {"embed@inner": 2})
  assert got["inner"].shape == (6, 2) and got["block"]["bias"].shape == (6,)


def test_slice_by_index_and_its_gradient():
  params, rows = make(), np.array([5, 0, 2])
  got = tree.slice_axes(params, NAMES, {"mlp": rows})
  np.testing.assert_array_equal(
    got["block"]["down"], params["block"]["down"][rows]
  )

  def loss(params, rows):
    cut = tree.slice_axes(params, NAMES, {"mlp": rows, "heads": 1})
    return sum(jnp.sum(x) for x in jax.tree.leaves(cut))

  grad = jax.jit(jax.grad(loss))(params, jnp.asarray(rows))  # traced index
  want = np.zeros((8, 6), np.float32)
  want[rows] = 1
  np.testing.assert_array_equal(grad["block"]["down"], want)
  np.testing.assert_array_equal(grad["qkv"][..., 1], 0)
  np.testing.assert_array_equal(grad["qkv"][..., 0], 1)


def test_slice_keeps_numpy_and_abstract_trees():
  host = jax.tree.map(np.asarray, make())
  got = tree.slice_axes(host, NAMES, {"mlp": 3})
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(got))
  abstract = jax.eval_shape(
    lambda p: tree.slice_axes(p, NAMES, {"mlp": 3}), host
  )
  assert abstract["block"]["up"].shape == (6, 3)


@pytest.mark.parametrize(
  ("index", "says"),
  [
    ({"mlp": 9}, "block/down, axis 'mlp': prefix 9 is not in 1..8"),
    ({"mlp": 0}, "prefix 0"),
    ({"mlp": [0, 8]}, "entries 0..8 not in 0..7"),
    ({"mlp": [0.5]}, "vector of ints"),
    ({"expert": 1}, "no parameter has axis 'expert'"),
    ({"mpl": 1}, "did you mean 'mlp'"),
    ({"qkv": 1}, "cannot be sliced"),
  ],
)
def test_slice_errors(index, says):
  with pytest.raises(AxisError, match=says):
    tree.slice_axes(make(), NAMES, index)


def test_shrink_equals_the_slice():
  big = make()
  got = tree.shrink(big, NAMES, jax.eval_shape(lambda: make(4, 3, 4)))
  want = tree.slice_axes(big, NAMES, {"embed": 4, "mlp": 3})
  jax.tree.map(np.testing.assert_array_equal, got, want)
  only = tree.shrink(big, NAMES, {"inner": jax.ShapeDtypeStruct((2, 2), "f4")})
  assert list(only) == ["inner"]  # layers the small model lacks are dropped


@pytest.mark.parametrize(
  ("path", "shape", "says"),
  [
    ("inner", (7, 6), "inner: axis 'embed' grows from 6 to 7"),
    ("inner", (6,), "inner: rank"),
    ("qkv", (6, 2, 2), "qkv: axis 'qkv' goes from 3 to 2"),
    ("innner", (6,), "has no innner, did you mean 'inner'"),
  ],
)
def test_shrink_errors(path, shape, says):
  with pytest.raises(AxisError, match=says):
    tree.shrink(make(), NAMES, {path: jax.ShapeDtypeStruct(shape, "f4")})


def test_names_and_parameters_have_to_agree():
  names = {**NAMES, "extra": axes.parse("embed")}
  with pytest.raises(UserError, match="extra"):
    tree.slice_axes(make(), names, {"mlp": 2})
