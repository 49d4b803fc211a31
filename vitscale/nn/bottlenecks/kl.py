"""The bottleneck of a variational auto-encoder: a Gaussian for every float.

    z = mu + sigma e,  e ~ N(0, 1) in training;  z = mu otherwise
    kl = mean over tokens and floats of (mu^2 + sigma^2 - 1 - ln sigma^2) / 2

mu and ln sigma^2 are linear in a token (Kingma & Welling, 1312.6114, appendix
B; ViTok, 2501.09755, section 2). `kl` is in nats per float, ViTok's unit: its
weight of 1e-3 is one of a mean. The divergence of an image, in nats, is
E = n c times that, and its weight a mean's divided by E.

What it loses: the noise, which training sets against the price. A float that
is not worth it gets mu = 0, sigma = 1 and carries nothing.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.nn.linear import Linear

# Range of ln sigma^2, that of latent diffusion (2112.10752, released code).
# Outside of it there is no gradient.
LOG_VARIANCE = -30.0, 20.0


class Bottleneck(nn.Module):
  """Mean and variance, and a draw.

  Attributes:
    code: c, floats of a token.
    dtype: compute type of the linear map; the rest is float32.
  """

  code: int = 16
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: jax.Array, *, train: bool
  ) -> tuple[jax.Array, dict[str, Any]]:
    """(b, n, d) -> z (b, n, c), and `mean`, `log_variance` of that shape.

    The penalty is `kl`. In training it draws from the stream "latent".

    Raises:
      UserError: no float.
    """
    if self.code < 1:
      raise UserError(f"kl({self.code}): code is 1 or more floats a token")
    # One map and one product, the two meanings an axis of their own.
    spec, sizes = "embed -> code@moments code", (2, self.code)
    moments = Linear(
      spec, sizes, init=axes.lecun, dtype=self.dtype, name="moments"
    )(x).astype(jnp.float32)
    mean = moments[..., 0, :]
    log_variance = jnp.clip(moments[..., 1, :], *LOG_VARIANCE)
    nats = divergence(mean, log_variance).mean((1, 2))
    out = {"mean": mean, "log_variance": log_variance}
    out["penalties"] = {"kl": nats}
    if not train:
      return mean, out
    noise = jax.random.normal(self.make_rng("latent"), mean.shape)
    return mean + jnp.exp(log_variance / 2) * noise, out


def divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
  """KL(N(mean, exp(log_variance)) || N(0, 1)) of each float, in nats."""
  return (jnp.square(mean) + jnp.expm1(log_variance) - log_variance) / 2
