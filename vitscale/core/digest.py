"""A digest per array, equal for equal bits however the array is sharded.

Two wrap-around sums of 32-bit words, computed where the array lives: integer
addition doesn't care in which order shards are added up, so the digest of a
leaf is the same on any mesh and number of processes. The first sums a mixed
word (mixed with its position), the second the word times an odd number made
from its position. Any change of a single word changes both; anything else
(a zeroed block, swapped rows) is missed with a chance of 2^-64. It finds bit
rot, it does not stop a forger.

The mixing function is the finaliser of MurmurHash3 (A. Appleby, public domain).
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def digests(leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
  """The digest of every leaf, as (2,) uint32 that may still be computing.

  Args:
    leaves: name -> array of any dtype, on the host or on devices. Of an array
      over several processes every process must ask, and all get the answer.
  """
  found = {}
  for name, leaf in leaves.items():
    found[name] = _dispatch(leaf)
    # Devices that share a CPU's threads starve each other when collectives of
    # many programs are under way: one at a time.
    if jax.default_backend() == "cpu":
      found[name].block_until_ready()
  return found


def text(digest: Any) -> str:
  """16 hexadecimal digits, as manifests store them."""
  return "".join(f"{int(word):08x}" for word in np.asarray(digest))


def _dispatch(x: Any) -> jax.Array:
  if not isinstance(x, jax.Array):
    x = np.asarray(x)
    if x.dtype.itemsize == 8:  # without x64 a device would round it
      x = np.ascontiguousarray(x).reshape(*x.shape, 1).view(np.uint32)
    return _compiled(None)(x)
  mesh = getattr(x.sharding, "mesh", None)
  if mesh is None or not mesh.devices.size:
    return _compiled(None)(x)
  return _compiled(jax.NamedSharding(mesh, jax.P()))(x)


@functools.cache
def _compiled(out: Any) -> Any:
  return jax.jit(_digest, out_shardings=out)


def _digest(x: jax.Array) -> jax.Array:
  words = _words(x)
  place = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    iota = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place = place * np.uint32(size) + iota  # row-major, wraps around
  place = _mix(place + np.uint32(0x9E3779B9))
  mixed, weighted = _mix(words ^ place), words * (place | np.uint32(1))
  add = functools.partial(jnp.sum, dtype=jnp.uint32)
  return jnp.stack([add(mixed), add(weighted)])


def _words(x: jax.Array) -> jax.Array:
  """The bits of every entry as one or two uint32."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if jnp.issubdtype(x.dtype, jnp.complexfloating):
    x = jnp.stack([x.real, x.imag], -1)
  if x.dtype == jnp.bool_:
    x = x.astype(jnp.uint8)
  unsigned = _UNSIGNED.get(x.dtype.itemsize, jnp.uint32)  # 8 bytes: two words
  return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _mix(x: jax.Array) -> jax.Array:
  x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
  return x ^ (x >> 16)
