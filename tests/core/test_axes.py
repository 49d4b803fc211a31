"""core/axes: names are declared once, checked, and survive scan."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vitscale.core import axes
from vitscale.core.axes import Axes, AxisError


class Mlp(nn.Module):
  """A residual MLP block in the calling convention of nn.scan."""

  width: int = 8

  @nn.compact
  def __call__(self, x, _):
    d = x.shape[-1]
    w = axes.param(self, "up", "embed -> mlp", (d, self.width), axes.lecun)
    b = axes.param(self, "bias", "mlp", (self.width,), axes.zeros)
    v = axes.param(self, "down", "mlp -> embed", (self.width, d), axes.lecun)
    return x + jnp.tanh(x @ w + b) @ v, None


def stack(**kw):
  return nn.scan(
    Mlp,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    length=3,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )(**kw)


def shapes_of(module):
  key = jax.random.key(0)
  return jax.eval_shape(module.init, key, jnp.zeros((2, 4)), None)["params"]


def test_parse_reads_the_arrow():
  assert axes.parse("embed -> heads head_dim") == Axes(
    ("embed", "heads", "head_dim"), 1
  )
  assert axes.parse("pos embed") == Axes(("pos", "embed"), 0)
  assert axes.parse("embed -> heads").fan_out == ("heads",)
  assert str(axes.parse("embed->mlp")) == "embed -> mlp"
  assert str(axes.parse("mlp")) == "mlp"
  assert axes.role("embed@stage2") == "embed"


@pytest.mark.parametrize(
  ("spec", "says"),
  [
    ("embd -> mlp", "did you mean 'embed'"),
    ("embed -> embed", "twice"),
    ("embed@ -> wide@stage2", "unknown axis name 'wide@stage2'"),
  ],
)
def test_bad_names_raise(spec, says):
  with pytest.raises(AxisError, match=says):
    axes.parse(spec)


def test_fan_in_of_the_declaration_sets_the_variance():
  init = axes.lecun.bind(axes.parse("embed -> heads head_dim"))
  x = init(jax.random.key(0), (256, 4, 64), jnp.float32)
  assert abs(float(x.std()) * 16 - 1) < 0.02
  with pytest.raises(AxisError, match="no fan-in"):
    axes.lecun.bind(axes.parse("embed"))


def test_number_of_names_has_to_fit_the_shape():
  class Bad(nn.Module):
    @nn.compact
    def __call__(self, x):
      return axes.param(self, "w", "embed -> mlp", (4,), axes.zeros)

  with pytest.raises(AxisError, match="names 2 axes"):
    Bad().init(jax.random.key(0), 0)


def test_names_of_loop_and_scan():
  loop, scan = (
    axes.names_of(shapes_of(Mlp())),
    axes.names_of(shapes_of(stack())),
  )
  assert loop["up"] == Axes(("embed", "mlp"), 1)
  assert loop["bias"] == Axes(("mlp",), 0)
  assert scan["up"].names == ("layers", "embed", "mlp")
  assert scan["bias"] == Axes(("layers", "mlp"), 0)
  # Stacked copies are no inputs: fans are those of one layer.
  assert scan["up"].fan_in == loop["up"].fan_in
  assert scan["up"].fan_out == loop["up"].fan_out
  assert scan["bias"].fan_out == loop["bias"].fan_out == ("mlp",)


def test_scan_initialises_each_layer_like_the_loop():
  x = jnp.zeros((1, 4))
  params = axes.unbox(stack(width=512).init(jax.random.key(0), x, None))
  up = params["params"]["up"]
  assert up.shape == (3, 4, 512)
  assert abs(float(up.std()) * 2 - 1) < 0.1
  assert not jnp.allclose(up[0], up[1])


def test_an_unnamed_parameter_is_an_error():
  dense = jax.eval_shape(nn.Dense(3).init, jax.random.key(0), jnp.zeros((1, 2)))
  with pytest.raises(AxisError, match="params/bias"):
    axes.names_of(dense)


def test_variables_are_named_too():
  class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
      mean = axes.variable(
        self, "batch_stats", "mean", "embed", (x.shape[-1],), axes.zeros
      )
      return x - mean.value

  module = Norm()
  variables = module.init(jax.random.key(0), jnp.ones((2, 4)))
  assert axes.names_of(variables)["batch_stats"]["mean"].names == ("embed",)
  plain = axes.unbox(variables)
  assert module.apply(plain, jnp.ones((2, 4))).shape == (2, 4)
