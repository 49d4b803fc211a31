"""Linear maps and channel mixers against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes
from vitscale.nn import ffn
from vitscale.nn.linear import Linear


def test_linear_over_several_axes():
  x = jax.random.normal(jax.random.key(0), (5, 2, 3))
  layer = Linear("heads head_dim -> embed", (4,))
  y, v = layer.init_with_output(jax.random.key(1), x)
  p = axes.unbox(v)["params"]
  assert p["kernel"].shape == (2, 3, 4) and p["bias"].shape == (4,)
  want = jnp.einsum("nhk,hkd->nd", x, p["kernel"])
  np.testing.assert_allclose(y, want, atol=1e-6)


def test_linear_computes_in_its_dtype_and_stores_float32():
  layer = Linear("embed -> qkv heads head_dim", (3, 2, 4), dtype="bfloat16")
  y, v = layer.init_with_output(jax.random.key(1), jnp.ones((5, 8)))
  assert y.shape == (5, 3, 2, 4) and y.dtype == jnp.bfloat16
  assert {p.dtype for p in jax.tree.leaves(v)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_mlp(gelu):
  x = jax.random.normal(jax.random.key(0), (5, 8))
  y, v = ffn.Mlp(8, 16, gelu=gelu).init_with_output(jax.random.key(1), x)
  p = axes.unbox(v)["params"]
  h = x @ p["up"]["kernel"] + p["up"]["bias"]
  act = jax.nn.gelu(h, approximate=gelu == "tanh")
  want = act @ p["down"]["kernel"] + p["down"]["bias"]
  np.testing.assert_allclose(y, want, atol=1e-6)


def test_swiglu_keeps_gate_and_value_apart():
  """Cutting the hidden axis of every parameter cuts hidden units."""
  x = jax.random.normal(jax.random.key(0), (5, 8))
  y, v = ffn.SwiGLU(8, 16).init_with_output(jax.random.key(1), x)
  p = axes.unbox(v)["params"]
  h = jax.nn.silu(x @ p["gate"]["kernel"]) * (x @ p["up"]["kernel"])
  np.testing.assert_allclose(y, h @ p["down"]["kernel"], atol=1e-6)
  cut = jax.tree.map(lambda a: a, p)
  for name in ("gate", "up"):
    cut[name] = {k: a[..., :6] for k, a in p[name].items()}
  cut["down"] = {**p["down"], "kernel": p["down"]["kernel"][:6]}
  got = ffn.SwiGLU(8, 6).apply({"params": cut}, x)
  want = h[:, :6] @ p["down"]["kernel"][:6]
  np.testing.assert_allclose(got, want, atol=1e-6)
