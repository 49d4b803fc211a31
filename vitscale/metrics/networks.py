"""Networks that judge images, by name: `network("inception(path='FILE')")`.

    random_conv          random weights of a fixed seed, metrics/features.py
    inception(path)      FID's network from a user's file, metrics/inception.py
    efficientnet_lite0   trained, from a package, metrics/efficientnet.py

and those that compare pairs of images, `distance("lpips(path='FILE')")`:

    random_conv          as above
    lpips(path)          from a user's file, metrics/lpips.py

Only features of the published Inception make an FID: every
other network's name goes with its numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitscale.core import call, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.metrics import efficientnet, features, weights
from vitscale.metrics import inception as inception_lib
from vitscale.metrics import lpips as lpips_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """What sees images, or pairs of them.

  Attributes:
    name: goes with every number.
    identity: which weights, and what is done with the images before.
    dim: of the features.
    least: pixels a side that images need.
    params: weights by torch's names.
    apply: `(get, images)` -> (b, dim), or of a pair -> (b,).
    fid: these are the features of the published FID.
  """

  name: str
  identity: str
  dim: int
  least: int
  params: Mapping[str, jax.Array]
  apply: Callable[..., jax.Array]
  fid: bool = False

  @property
  def frechet(self) -> str:
    """What a Frechet distance in these features is called."""
    return "fid" if self.fid else f"fd_{self.name}"

  def __call__(self, *images: jax.Array) -> jax.Array:
    """One jitted call; weights are arguments, not constants of the program.

    Args:
      *images: (b, h, w, c), uint8 or float in 0..1, c 1 or 3; grey is seen as
        three equal channels. Sharded ones are seen where they lie.

    Raises:
      UserError: images that are too small, or have other channels.
    """
    for x in images:
      check(self, x.shape)
    return _seen(self.apply, self.params, *images)


def check(net: Network, shape: tuple[int, ...]) -> None:
  """Raises UserError where images of this shape (..., h, w, c) won't do."""
  side, channels = min(shape[-3:-1]), shape[-1]
  if side < net.least or channels not in (1, 3):
    raise UserError(
      f"{net.name} needs images of {net.least} px and 1 or 3 channels, these"
      f" are {shape[-3]}x{shape[-2]} with {channels}"
    )


@functools.partial(jax.jit, static_argnums=0)
def _seen(apply, params, *images):
  def ready(x):
    x = x / 255.0 if x.dtype == jnp.uint8 else x
    return jnp.broadcast_to(x.astype(jnp.float32), (*x.shape[:3], 3))

  found = apply(weights.getter(params), *map(ready, images))
  return sharding.everywhere(found)


# ----------------------------------------------------------------- by name


def network(text: str) -> Network:
  """A network with features, from its name and options.

  Raises:
    UserError: no such network or option, a file that can't be read, or
      weights that are not the ones they are said to be.
  """
  return _made(text, FEATURES)


def distance(text: str) -> Network:
  """A network that compares pairs of images; errors as of `network`."""
  return _made(text, DISTANCES)


@functools.lru_cache(4)
def _made(text: str, kind: str) -> Network:
  known = NETWORKS[kind]
  name, args, kwargs = call.read(text, kind)
  if name not in known:
    raise UserError(f"{kind} {name!r}{nearest(name, known)}")
  options = call.bind(known[name], args, kwargs, what=kind)
  return known[name](**options)


def random_conv() -> Network:
  """See metrics/features.py."""
  see = lambda get, x: features.features(x)
  return Network(
    features.NAME, features.IDENTITY, features.DIM, features.LEAST, {}, see
  )


def random_conv_distance() -> Network:
  """See metrics/features.py."""
  apart = lambda get, x, y: features.distance(x, y)
  return Network(features.NAME, features.IDENTITY, 1, features.LEAST, {}, apart)


def inception(path: str, sha256: str = "") -> Network:
  """See metrics/inception.py; other weights only if `sha256` names them."""
  state, found = weights.load(path, sha256 or inception_lib.SHA256)
  fid = found == inception_lib.SHA256
  name = inception_lib.NAME if fid else f"{inception_lib.NAME}_{found[:8]}"
  what = "resized as by TensorFlow 1 to 299 px"
  return _from_state(inception_lib, state, name, found, what, fid)


def efficientnet_lite0() -> Network:
  """See metrics/efficientnet.py."""
  state, found = weights.load(efficientnet.path(), efficientnet.SHA256)
  what = "resized by cubics to 224 px"
  return _from_state(efficientnet, state, efficientnet.NAME, found, what)


def _from_state(
  module: Any,
  state: weights.State,
  name: str,
  sha256: str,
  what: str,
  fid: bool = False,
) -> Network:
  """Of a module with `features`, DIM, LEAST and SIDE."""
  see, dim = module.features, module.DIM
  wanted = weights.shapes(see, (1, module.SIDE, module.SIDE, 3))
  params = weights.chosen(state, wanted, name)
  identity = f"{name}(sha256={sha256}, features={dim}, {what})"
  return Network(name, identity, dim, module.LEAST, params, see, fid)


def lpips(path: str, net: str = "alex", sha256: str = "") -> Network:
  """See metrics/lpips.py; `net` alex or vgg."""
  if net not in lpips_lib.NETS:
    raise UserError(f"lpips: net {net!r}{nearest(net, lpips_lib.NETS)}")
  state, found = weights.load(path, sha256)
  name, apply = f"{lpips_lib.NAME}_{net}", DEPTHS[net]
  least = lpips_lib.LEAST[net]
  wanted = weights.shapes(lambda get, x: apply(get, x, x), (1, least, least, 3))
  params = weights.chosen(state, wanted, name)
  return Network(name, f"{name}(sha256={found})", 1, least, params, apply)


DEPTHS = {
  net: functools.partial(lpips_lib.distance, net=net) for net in lpips_lib.NETS
}
FEATURES, DISTANCES = "net", "distance"  # as options are called
NETWORKS: dict[str, dict[str, Callable[..., Any]]] = {
  FEATURES: {
    features.NAME: random_conv,
    inception_lib.NAME: inception,
    efficientnet.NAME: efficientnet_lite0,
  },
  DISTANCES: {features.NAME: random_conv_distance, lpips_lib.NAME: lpips},
}
