"""Context parallelism: attention over tokens that lie on several devices.

    gather    every device gets all keys and values, for its own queries; one
              collective, any back end (Llama 3, 2407.21783 section 3.3.2)
    ring      keys and values travel around, each device goes on with the same
              running softmax; memory of one device's tokens (2310.01889)
    ulysses   tokens are exchanged for heads, and back: all tokens of a few
              heads, any back end (2309.14509)

`rules.context` of a config chooses; models don't know. Class token and
registers are tokens like others. Where the devices don't divide the sequence
it is padded here with tokens that nobody sees. Where nothing splits it, each
device runs its own examples and heads: what a kernel needs.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vitscale.core import sharding
from vitscale.core.axes import AxisError
from vitscale.core.mesh import axis_entry
from vitscale.nn import tiled

# (q, k, v, ids, lengths) -> (b, nq, h, hd): one device's attention.
Run = Callable[..., jax.Array]


def attend(
  run: Run,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  ids: tuple[jax.Array, jax.Array] | None,
  lengths: jax.Array | None,
) -> jax.Array:
  """Bidirectional attention of tokens split over the sequence axis.

  Args:
    run: attention on one device; `ring` has its own, in blocks.
    q, k, v: (b, n, h, hd).
    ids: None, or (b, n) int32 of queries and of keys: equal ids see each other.
    lengths: None, or (b,) int32, the same as far as keys past them go.

  Returns:
    (b, n, h, hd), split as q is.

  Raises:
    AxisError: `ulysses` with heads that don't divide over the devices.
  """
  scope, axes = sharding.current(), sharding.over("sequence")
  size, n = sharding.ways("sequence"), q.shape[1]
  names = ("batch", "sequence", "heads", "head_dim")
  split = {
    name: axis_entry(sharding.over(name) if length > 1 else ())
    for name, length in zip(names, q.shape)
  } | {"sequence": axis_entry(axes)}
  if pad := -n % size:
    longer = lambda x: jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    q, k, v = longer(q), longer(k), longer(v)
    zero = jnp.zeros((len(q), n), jnp.int32)
    of_q, of_k = (longer(x) for x in ((zero, zero) if ids is None else ids))
    # Not by the value of the padding: XLA 0.10's partitioner loses it where a
    # constant is padded and split.
    real = jnp.arange(n + pad) < n
    ids = of_q, jnp.where(real, of_k, tiled.NOBODY)
    if lengths is None:
      lengths = jnp.full((len(q),), n, jnp.int32)
  ways = {"gather": _gather, "ring": _ring, "ulysses": _ulysses}
  exchange = ways[scope.rules.context] if size > 1 else _alone
  heads = PartitionSpec(*(split[name] for name in names))
  tokens, rows = PartitionSpec(*heads[:2]), PartitionSpec(*heads[:1])
  out = jax.shard_map(
    functools.partial(exchange, run, axes=axes, size=size),
    mesh=scope.mesh,
    in_specs=(heads, heads, heads, tokens, rows),
    out_specs=heads,
    check_vma=False,
  )(q, k, v, ids, lengths)
  return sharding.constrain(out[:, :n], *names)


def said(backend: str) -> str:
  """What attends here, for the record: `ring` has blocks of its own."""
  kind = sharding.current().rules.context
  return kind if kind == "ring" else f"{kind}, {backend}"


def _all(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """(b, n / size, ...) of each device -> (b, n, ...) on every one."""
  return jax.lax.all_gather(x, axes, axis=1, tiled=True)


def _alone(run, q, k, v, ids, lengths, axes, size):
  return run(q, k, v, ids, lengths)


def _gather(run, q, k, v, ids, lengths, axes, size):
  if ids is not None:
    ids = ids[0], _all(ids[1], axes)
  return run(q, _all(k, axes), _all(v, axes), ids, lengths)


def _ulysses(run, q, k, v, ids, lengths, axes, size):
  if q.shape[2] % size:
    raise AxisError(
      f"rules.context='ulysses': {q.shape[2]} heads on a device do not divide"
      f" by sequence = {size}; nearest"
      f" {max(q.shape[2] // size, 1) * size}, or use gather or ring"
    )
  swap = functools.partial(jax.lax.all_to_all, axis_name=axes, tiled=True)
  q, k, v = (swap(x, split_axis=2, concat_axis=1) for x in (q, k, v))
  if ids is not None:
    ids = tuple(_all(x, axes) for x in ids)
  out = run(q, k, v, ids, lengths)
  return swap(out, split_axis=1, concat_axis=2)


# --------------------------------------------------------------------- ring


def _ring(run, q, k, v, ids, lengths, axes, size):
  if ids is None:
    nobody_hidden = jnp.zeros(q.shape[:2], jnp.int32)
    ids = nobody_hidden, nobody_hidden
  k, v, of_k, block = tiled.in_blocks(k, v, ids[1])
  return _around(q, k, v, ids[0], of_k, block, axes, size)


def _next(x, axes: tuple[str, ...], size: int):
  """Every leaf from the device before; they travel while others are used."""
  pairs = [(i, (i + 1) % size) for i in range(size)]
  return jax.tree.map(lambda y: jax.lax.ppermute(y, axes, pairs), x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _around(q, k, v, of_q, of_k, block, axes, size):
  return _around_forward(q, k, v, of_q, of_k, block, axes, size)[0]


def _around_forward(q, k, v, of_q, of_k, block, axes, size):
  def absorb(carry, part):
    return tiled.absorb(carry, q, *part[:2], of_q, part[2], block)

  def hop(state, _):
    carry, part = state
    ahead = _next(part, axes, size)
    return (absorb(carry, part), ahead), None

  state = tiled.start(q), (k, v, of_k)
  (carry, last), _ = jax.lax.scan(hop, state, length=size - 1)
  out, lse = tiled.finish(absorb(carry, last), q.dtype)
  return out, (q, k, v, of_q, of_k, out, lse)


def _around_backward(block, axes, size, residuals, dout):
  q, k, v, of_q, of_k, out, lse = residuals
  delta = tiled.delta(dout, out)

  def pull(dq, part, grads):
    k, v, of_k = part
    dq, dk, dv = tiled.pull(dq, q, k, v, of_q, of_k, lse, delta, dout, block)
    return dq, (grads[0] + dk, grads[1] + dv)

  def hop(state, _):
    dq, part, grads = state
    ahead = _next(part, axes, size)
    dq, grads = pull(dq, part, grads)
    return (dq, ahead, _next(grads, axes, size)), None  # with their keys

  zero = lambda x: jnp.zeros(x.shape, jnp.float32)
  state = zero(q), (k, v, of_k), (zero(k), zero(v))
  (dq, last, grads), _ = jax.lax.scan(hop, state, length=size - 1)
  dq, grads = pull(dq, last, grads)
  dk, dv = _next(grads, axes, size)  # home
  return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_around.defvjp(_around_forward, _around_backward)
