"""core/sharding and core/mesh on one device: rules, errors, identity.

Placement over several devices is tested in tests/multidevice.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vitscale.core import axes, placement, sharding
from vitscale.core.axes import AxisError
from vitscale.core.errors import UserError


def fake_mesh(**sizes):
  """A mesh of shapes only: enough for everything before a compile."""
  sizes = {name: sizes.get(name, 1) for name in sharding.MESH_AXES}
  return AbstractMesh(
    tuple(sizes.values()),
    tuple(sizes),
    axis_types=(AxisType.Auto,) * len(sizes),
  )


NAMES = {
  "up": axes.parse("embed -> mlp"),
  "down": axes.parse("mlp -> embed"),
  "square": axes.parse("embed -> embed@inner"),
  "qkv": axes.parse("embed -> qkv heads head_dim"),
  "bias": axes.parse("embed"),
}


def shapes(d=256, m=1024, heads=4):
  spec = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")
  return {
    "up": spec(d, m),
    "down": spec(m, d),
    "square": spec(d, d),
    "qkv": spec(d, 3, heads, 64),
    "bias": spec(d),
  }


def specs(mesh, rules=sharding.RULES, abstract=None, **kw):
  abstract = shapes() if abstract is None else abstract
  tree = sharding.param_shardings(NAMES, abstract, mesh, rules, **kw)
  return {name: s.spec for name, s in tree.items()}


def test_constrain_is_the_identity_outside_a_mesh():
  x = jnp.ones((2, 3))
  assert sharding.constrain(x, "batch", "embed") is x
  with sharding.use(sharding.make_mesh()), sharding.use(None):
    assert sharding.constrain(x, "batch", "embed") is x
  assert sharding.ways("sequence") == 1


@pytest.mark.parametrize(
  ("names", "says"),
  [
    (("batch", "embd"), "did you mean 'embed'"),
    (("batch",), "1 axis names"),
    (("batch", "sequence", "embed"), "3 axis names"),
  ],
)
def test_constrain_checks_names_without_a_mesh_too(names, says):
  with pytest.raises(AxisError, match=says):
    sharding.constrain(jnp.ones((2, 3)), *names)


def test_use_counts_constraints():
  x = jnp.ones((2, 3))

  @jax.jit
  def f(x):
    x = sharding.constrain(x, "batch", "embed")
    return sharding.constrain(x * 2, "batch", None)

  with sharding.use(sharding.make_mesh()) as scope:
    np.testing.assert_array_equal(f(x), 2)
    assert scope.constraints == 2 and sharding.current() is scope
  assert sharding.current() is None


def test_default_placement():
  got = specs(fake_mesh(fsdp=4, tensor=2))
  assert got == {
    "up": PartitionSpec("fsdp", "tensor"),
    "down": PartitionSpec("tensor", "fsdp"),
    "square": PartitionSpec("fsdp", None),  # the second scope stays whole
    "qkv": PartitionSpec("fsdp", None, "tensor", None),
    "bias": PartitionSpec(),  # small
  }
  assert specs(fake_mesh(fsdp=4), small=1)["bias"] == PartitionSpec("fsdp")


def test_rules_can_be_overridden():
  rules = sharding.RULES.override(
    params={"embed": ("fsdp", "tensor"), "mlp": None}
  )
  rules = rules.override(params={"heads": None})
  got = specs(fake_mesh(fsdp=2, tensor=2), rules)
  assert got["up"] == PartitionSpec(("fsdp", "tensor"), None)


@pytest.mark.parametrize(
  ("params", "says"),
  [
    ({"embd": "fsdp"}, "did you mean 'embed'"),
    ({"embed": "fdsp"}, "did you mean 'fsdp'"),
    ({"embed": ("fsdp", "tensor")}, "down: 'mlp' and 'embed' both ask"),
    ({"expert": "fsdp"}, "'expert' matches no parameter"),
  ],
)
def test_rule_errors(params, says):
  with pytest.raises(AxisError, match=says):
    specs(fake_mesh(fsdp=2, tensor=2), sharding.RULES.override(params=params))


def test_an_indivisible_dimension_names_everything():
  with pytest.raises(AxisError) as error:
    specs(fake_mesh(fsdp=3, tensor=2))
  for part in ("down (1024, 256)", "'embed' = 256", "fsdp = 3", "255 or 258"):
    assert part in str(error.value)
  with pytest.raises(AxisError, match=r"qkv.*'heads' = 4.*tensor = 8"):
    specs(fake_mesh(tensor=8), abstract=shapes(m=1024, heads=4))


def test_trees_have_to_agree():
  abstract = shapes()
  del abstract["bias"]
  with pytest.raises(UserError, match="bias"):
    specs(fake_mesh(), abstract=abstract)
  abstract = shapes() | {"bias": jax.ShapeDtypeStruct((2, 2), "float32")}
  with pytest.raises(AxisError, match="bias: axes 'embed' for shape"):
    specs(fake_mesh(), abstract=abstract)


@pytest.mark.parametrize(
  ("shape", "says"),
  [
    ({"fspd": 1}, "did you mean 'fsdp'"),
    ({"fsdp": -1, "tensor": -1}, "one may be -1"),
    ({"fsdp": 0}, "one may be -1"),
    ({"tensor": 64}, "asks for 64 devices"),
    ({"fsdp": -1, "tensor": 64}, "a multiple of 64 devices"),
  ],
)
def test_mesh_errors(shape, says):
  with pytest.raises(UserError, match=says):
    sharding.make_mesh(shape)


def test_mesh_is_auto_and_complete():
  mesh = sharding.make_mesh({"fsdp": -1}, jax.devices()[:1])
  assert mesh.axis_names == tuple(sharding.MESH_AXES)
  assert set(mesh.axis_types) == {AxisType.Auto}


def test_foreign_meshes_are_refused():
  explicit = jax.make_mesh(
    (1,), ("fsdp",), devices=jax.devices()[:1], axis_types=(AxisType.Explicit,)
  )
  with (
    pytest.raises(UserError, match="must be of type Auto"),
    sharding.use(explicit),
  ):
    pass
  narrow = jax.make_mesh(
    (1,), ("fsdp",), devices=jax.devices()[:1], axis_types=(AxisType.Auto,)
  )
  with pytest.raises(UserError, match="no axis 'tensor'"), sharding.use(narrow):
    pass


def test_describe_is_a_table():
  mesh = fake_mesh(fsdp=4, tensor=2)
  tree = sharding.param_shardings(NAMES, shapes(), mesh)
  lines = placement.describe(NAMES, shapes(), tree).splitlines()
  assert lines[0].split() == ["parameter", "shape", "axes", "placement"]
  assert lines[1].split() == ["bias", "256", "embed", "copied"]
  assert (
    lines[-1]
    == "up         256 x 1024        embed -> mlp                 fsdp tensor"
  )
