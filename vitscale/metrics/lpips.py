"""LPIPS: how far two images look apart (Zhang et al., 1801.03924, section 3.2).

Activations of AlexNet or VGG-16 at five depths, at each place brought to
length 1; squared differences, weighed by channel with learned weights; the
mean over places, summed over depths. Version 0.1 of the authors' weights, in
one file with the names of their package:

    net = lpips.LPIPS(net="alex")
    torch.save(net.state_dict(), "lpips_alex.pth")
"""

import jax
import jax.numpy as jnp

from vitscale.metrics.weights import Get, conv, max_pool

NAME = "lpips"
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Of each depth: convolutions (place in the network, width), kernel and stride,
# padding; the pool before it.
NETS = {
  "alex": (
    (((0, 64),), 11, 4, 2),
    (((3, 192),), 5, 1, 2),
    (((6, 384),), 3, 1, 1),
    (((8, 256),), 3, 1, 1),
    (((10, 256),), 3, 1, 1),
  ),
  "vgg": (
    (((0, 64), (2, 64)), 3, 1, 1),
    (((5, 128), (7, 128)), 3, 1, 1),
    (((10, 256), (12, 256), (14, 256)), 3, 1, 1),
    (((17, 512), (19, 512), (21, 512)), 3, 1, 1),
    (((24, 512), (26, 512), (28, 512)), 3, 1, 1),
  ),
}  # fmt: skip
POOLS = {"alex": ((1, 2), 3), "vgg": ((1, 2, 3, 4), 2)}  # before depth; size
LEAST = {"alex": 31, "vgg": 16}  # pixels a side: one place at the last depth


def distance(get: Get, x: jax.Array, y: jax.Array, *, net: str) -> jax.Array:
  """(b,) float32 of two (b, h, w, 3) in 0..1."""
  far = jnp.zeros(len(x))
  for i, (u, v) in enumerate(zip(layers(get, x, net), layers(get, y, net))):
    weight = get(f"lin{i}.model.1.weight", (1, u.shape[-1], 1, 1))[0, :, 0, 0]
    far += (jnp.square(_unit(u) - _unit(v)) * weight).sum(-1).mean((1, 2))
  return far


def layers(get: Get, images: jax.Array, net: str) -> list[jax.Array]:
  """Activations (b, rows, columns, channels) at five depths."""
  x = (2 * images - 1 - jnp.array(SHIFT)) / jnp.array(SCALE)
  before, size = POOLS[net]
  found = []
  for depth, (convs, kernel, stride, padding) in enumerate(NETS[net]):
    if depth in before:
      x = max_pool(x, size, 2)
    for place, width in convs:
      name = f"net.slice{depth + 1}.{place}"
      x = conv(
        get, x, f"{name}.weight", width, kernel, stride=stride, padding=padding
      )
      x = jax.nn.relu(x + get(f"{name}.bias", (width,)))
    found.append(x)
  return found


def _unit(x: jax.Array) -> jax.Array:
  """Of length 1 over channels; 0 stays 0, with a gradient of 0."""
  squares = jnp.square(x).sum(-1, keepdims=True)
  length = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
  return jnp.where(squares > 0, x / (length + 1e-10), 0.0)
