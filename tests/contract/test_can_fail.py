"""The contract tests see flaws: a sound toy passes, each flawed one fails."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.contract import families, test_families
from vitscale import zoo
from vitscale.core import axes
from vitscale.nn.linear import Linear
from vitscale.nn.patch import PatchEmbed, pair


class Model(nn.Module):
  """Patches, one hidden layer, the mean, logits; and maybe a flaw."""

  num_classes: int
  width: int = 8
  mlp_dim: int = 16
  patch_size: int = 4
  dtype: str = "float32"
  scan: bool = False
  remat: str | None = None
  flaw: str = ""

  @nn.compact
  def __call__(self, image, *, train: bool = False, patch_size=None):
    del train
    if self.flaw == "crash" and image.shape[1] % 2:
      raise ValueError("odd")
    canonical = patch_size == self.patch_size
    if self.flaw == "patch" and canonical:
      image = image * 1.001
    x = PatchEmbed(self.width, self.patch_size, self.dtype)(image, patch_size)
    if self.flaw == "nan":
      x = jnp.sqrt(x)
    if self.flaw == "bare":
      x = x + self.param("bare", nn.initializers.zeros, (self.width,))
    if self.flaw == "unused":
      axes.param(self, "unused", "embed", (self.width,), axes.ones)
    if self.flaw == "fused":  # two meanings in one axis
      h = Linear("embed -> mlp", (2 * self.mlp_dim,), dtype=self.dtype)(x)
      gate, h = jnp.split(jax.nn.gelu(h), 2, -1)
      h = gate * h
    else:
      h = jax.nn.gelu(Linear("embed -> mlp", (self.mlp_dim,))(x))
    if self.flaw == "norm":  # over an axis that slicing cuts
      h = h / jnp.sqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6)
    if (self.scan and self.flaw == "scan") or self.remat == self.flaw:
      h = h * 1.001
    x = x + Linear("mlp -> embed", (self.width,), dtype=self.dtype)(h)
    grid = x[:, 1:] if self.flaw == "features" else x
    y = x.astype(jnp.float32).mean((1, 2))
    y = Linear("embed -> classes", (self.num_classes,))(y)
    stride = pair(patch_size or self.patch_size)
    return y, {"features": [(grid, stride)]}


def macs(kwargs, image):
  h, w, c = image
  n, extra = h * w // 16, kwargs.get("flaw") == "macs"
  return n * 8 * (16 * c + 2 * 16) + 8 * kwargs["num_classes"] + extra


@pytest.fixture
def fam(request, monkeypatch):
  flaw = getattr(request, "param", "")
  module = types.SimpleNamespace(
    Model=Model,
    PRESENTED={"mu@12": {}},
    VARIANTS={"mu": {}},
    variant=lambda name: {"flaw": flaw},
    flops_per_image=macs,
  )
  monkeypatch.setattr(zoo, "family", lambda name: module)
  return families.Family("toy")


CHECKS = {
  "crash": "sizes",
  "features": "sizes",
  "bare": "axes",
  "unused": "gradients",
  "nan": "gradients",
  "scan": "scan",
  "full": "remat",
  "patch": "patch_size",
  "macs": "macs",
  "norm": "slicing",
  "fused": "slicing",
}


def run(fam, check):
  wants = {"record_property": lambda *_: None, "fam": fam}
  function = getattr(test_families, f"test_{check}")
  names = function.__code__.co_varnames[: function.__code__.co_argcount]
  function(**{name: wants[name] for name in names})


# Not scan and axes: the toy has no layers to stack.
@pytest.mark.parametrize(
  "check", sorted(set(CHECKS.values()) - {"scan", "axes"})
)
def test_a_sound_toy_passes(fam, check):
  run(fam, check)


@pytest.mark.parametrize("fam, check", CHECKS.items(), indirect=["fam"])
def test_a_flaw_fails(fam, check):
  with pytest.raises((AssertionError, axes.AxisError, ValueError)):
    run(fam, check)
