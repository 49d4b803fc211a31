"""FLOPs counted on the jaxpr of a function.

A multiply-add is two. XLA's own cost analysis counts a scanned body once
(measured: 0.13 to 0.5 of the truth) and is not used. The first column holds
matmuls and convolutions and is what MFU means; element-wise work stands in a
second column and is approximate (one operation an entry, whatever it costs).
Data movement and collectives count nothing. Convolutions count the taps that
meet an input entry, not those on padding or dilation holes, which makes each
of their two gradients cost exactly what the forward pass does.

`train_flops` counts model FLOPs: recomputation under `jax.checkpoint` is left
out, so that the number does not depend on remat, nor on scan or loop.
`count_flops` of a gradient counts what is executed, recomputation included.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex
from jax.interpreters import partial_eval

from vitscale.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Flops:
  """Floating point operations; a multiply-add is two."""

  matmul: int = 0
  elementwise: int = 0

  def __add__(self, other: "Flops") -> "Flops":
    return Flops(
      self.matmul + other.matmul, self.elementwise + other.elementwise
    )

  def __mul__(self, times: int) -> "Flops":
    return Flops(self.matmul * times, self.elementwise * times)

  def __floordiv__(self, parts: int) -> "Flops":
    return Flops(self.matmul // parts, self.elementwise // parts)

  @property
  def total(self) -> int:
    return self.matmul + self.elementwise


def count_flops(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Flops:
  """FLOPs of one call of `fn`; nothing is computed.

  Args:
    fn: a jax function.
    *args: arrays or ShapeDtypeStructs, as for `jax.make_jaxpr`.
    **kwargs: the same; bind static arguments with `functools.partial`.

  Raises:
    UserError: a while loop of unknown length, or a custom kernel without a
      cost (`register_cost`).
  """
  return _count(_live(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr))


def train_flops(loss: Callable[..., Any], params: Any, *args: Any) -> Flops:
  """Model FLOPs of one `value_and_grad` of a loss: no recomputation.

  Args:
    loss: `loss(params, *args)` -> scalar or (scalar, aux); aux is not paid
      for. Pass frozen parameters among `args`.
    params: what is differentiated, arrays or ShapeDtypeStructs.
    *args: the rest.
  """

  def scalar(params, *args):
    out = loss(params, *args)
    return out[0] if isinstance(out, tuple) else out

  traced = jax.make_jaxpr(scalar)(params, *args)
  traced = traced.replace(jaxpr=_inline_remat(traced.jaxpr))

  def plain(params, *args):
    return jex.jaxpr_as_fun(traced)(*jax.tree.leaves((params, *args)))[0]

  return count_flops(jax.value_and_grad(plain), params, *args)


def train_flops_per_example(
  loss: Callable[..., Any], params: Any, *args: Any, examples: int
) -> Flops:
  """`train_flops` divided by the number of examples in `args`."""
  return train_flops(loss, params, *args) // examples


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


_COSTS: dict[str, Callable[[Any], Flops]] = {}


def register_cost(name: str, cost: Callable[[Any], Flops]) -> None:
  """Gives a primitive its cost, from its jaxpr equation.

  `name` is the primitive's, for Pallas kernels `pallas_call:KERNEL`. State
  what it executes: the logits that a backward kernel computes again count, as
  they do where they are computed by XLA. Model FLOPs are counted on a model
  without kernels.
  """
  _COSTS[name] = cost


# Where a body or an output shape would tell a wrong cost.
_OPAQUE = _words(
  "pallas_call ffi_call cholesky lu qr householder_product svd eig eigh schur"
  " hessenberg triangular_solve tridiagonal tridiagonal_solve"
  " ragged_dot_general scaled_matmul dot_product_attention_fp8_fwd_wrapper"
  " dot_product_attention_fp8_bwd_wrapper"
)
_FREE = _words(
  "reshape broadcast_in_dim transpose squeeze expand_dims slice dynamic_slice"
  " dynamic_update_slice gather scatter concatenate split pad rev iota copy"
  " copy_p convert_element_type bitcast_convert_type reduce_precision"
  " stop_gradient sharding_constraint device_put name optimization_barrier"
  " random_seed random_wrap random_unwrap random_fold_in random_split"
  " psum psum2 psum_invariant pmax pmin ppermute all_gather"
  " all_gather_invariant all_to_all reduce_scatter axis_index pvary pcast"
  " mesh_cast reshard empty empty2 create_token after_all debug_callback"
  " debug_print pure_callback real imag complex get swap layout_constraint"
  " copy_to copy_start copy_done"
)
# One operation per entry read.
_READS = _words(
  "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or"
  " reduce_xor reduce argmax argmin cumsum cumprod cummax cummin"
  " cumlogsumexp sort top_k approx_top_k"
)


def _count(jaxpr: Any) -> Flops:
  total = Flops()
  for eqn in jaxpr.eqns:
    total = total + _cost(eqn)
  return total


def _cost(eqn: Any) -> Flops:
  name = eqn.primitive.name
  if name == "pallas_call":
    name = f"{name}:{_pallas_name(eqn)}"
  if name in _COSTS:
    return _COSTS[name](eqn)
  if eqn.primitive.name in _OPAQUE:
    raise UserError(
      f"no FLOP count for primitive {name!r}: give it one with"
      f" vitscale.core.accounting.register_cost({name!r}, fn)"
    )
  if name in _FREE:
    return Flops()
  if name == "scan":
    return _count(eqn.params["jaxpr"].jaxpr) * eqn.params["length"]
  if name == "while":
    body = _count(eqn.params["body_jaxpr"].jaxpr)
    test = _count(eqn.params["cond_jaxpr"].jaxpr)
    return Flops() if body == Flops() else (body + test) * _trips(eqn)
  if name == "cond":
    branches = [_count(b.jaxpr) for b in eqn.params["branches"]]
    return max(branches, key=lambda f: (f.matmul, f.elementwise))
  if name == "shard_map":
    return _count(eqn.params["jaxpr"]) * _shards(eqn)
  if name in _READS:
    return Flops(elementwise=_size(eqn.invars[0]))
  if name.startswith("scatter"):
    return Flops(elementwise=_size(eqn.invars[2]))
  if name.startswith(("reduce_window", "select_and")):
    window = eqn.params.get("window_dimensions", ())
    reads = max(_size(v) for v in (*eqn.invars, *eqn.outvars))
    strides = eqn.params.get("window_strides", window)
    return Flops(elementwise=reads * math.prod(window) // math.prod(strides))
  # jit, closed_call, custom_jvp/vjp, remat, custom_partitioning, ...
  bodies = list(jex.jaxprs_in_params(eqn.params))
  if bodies:
    return sum((_count(body) for body in bodies), Flops())
  return Flops(elementwise=max((_size(v) for v in eqn.outvars), default=0))


def _dot_general(eqn: Any) -> Flops:
  (left, _), _ = eqn.params["dimension_numbers"]
  inner = math.prod(eqn.invars[0].aval.shape[d] for d in left)
  return Flops(matmul=2 * _size(eqn.outvars[0]) * inner)


def _conv(eqn: Any) -> Flops:
  p, out = eqn.params, eqn.outvars[0].aval.shape
  left, right = (v.aval.shape for v in eqn.invars)
  numbers = p["dimension_numbers"]
  pairs = 1
  for i, (dl, dr, do) in enumerate(
    zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:])
  ):
    pairs *= _taps(
      left[dl],
      right[dr],
      out[do],
      p["window_strides"][i],
      p["padding"][i][0],
      p["lhs_dilation"][i],
      p["rhs_dilation"][i],
    )
  batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
  inner = right[numbers.rhs_spec[1]]  # channels of one group
  return Flops(matmul=2 * batch * features * inner * pairs)


def _taps(size, kernel, out, stride, pad, lhs_dilation, rhs_dilation) -> int:
  """How many (output, tap) pairs of one dimension meet an input entry."""
  at = np.arange(out)[:, None] * stride - pad
  at = at + np.arange(kernel)[None, :] * rhs_dilation
  inside = (at >= 0) & (at <= (size - 1) * lhs_dilation)
  return int((inside & (at % lhs_dilation == 0)).sum())


def _fft(eqn: Any) -> Flops:
  n = math.prod(eqn.params["fft_lengths"])
  size = max(_size(eqn.invars[0]), _size(eqn.outvars[0]))
  return Flops(elementwise=round(5 * size * math.log2(max(n, 2))))


def _attention(eqn: Any) -> Flops:
  """cuDNN attention: two products, five in the backward pass."""
  q, k, v = (x.aval.shape for x in eqn.invars[:3])
  heads_first = eqn.params["layout"] == 1  # BNTH, otherwise BTNH
  rows, columns = (q[2], k[2]) if heads_first else (q[1], k[1])
  heads = q[1] if heads_first else q[2]
  forward = 2 * q[0] * heads * rows * columns * (q[3] + v[3])
  backward = "bwd" in eqn.primitive.name
  return Flops(matmul=forward * 5 // 2 if backward else forward)


register_cost("dot_general", _dot_general)
register_cost("conv_general_dilated", _conv)
register_cost("fft", _fft)
for _name in ("fwd", "fwd_wrapper", "bwd", "bwd_wrapper"):
  register_cost(f"dot_product_attention_{_name}", _attention)


def _trips(eqn: Any) -> int:
  """Length of a while loop that counts from one constant to another."""
  p, literal = eqn.params, lambda v: getattr(v, "val", None)
  skip_cond, skip_body = p["cond_nconsts"], p["body_nconsts"]
  test, body = p["cond_jaxpr"].jaxpr, p["body_jaxpr"].jaxpr
  start = eqn.invars[skip_cond + skip_body :]
  if len(test.eqns) == 1 and test.eqns[0].primitive.name in ("lt", "le"):
    counter, stop = test.eqns[0].invars
    limit = literal(stop)
    if limit is None and stop in test.invars[:skip_cond]:
      limit = literal(eqn.invars[test.invars.index(stop)])
    carried = test.invars[skip_cond:]
    if counter in carried and limit is not None:
      i = carried.index(counter)
      first, into = literal(start[i]), body.outvars[i]
      for step in body.eqns:
        if into in step.outvars and step.primitive.name == "add":
          by = [literal(v) for v in step.invars]
          same = body.invars[skip_body + i] in step.invars
          by = next((b for b in by if b is not None), None)
          if same and by and by > 0 and first is not None:
            extra = test.eqns[0].primitive.name == "le"
            span = int(limit) + extra - int(first)
            return max(0, -(-span // int(by)))
  raise UserError(
    "FLOPs of a while loop whose length is not known when tracing; use"
    " lax.scan or lax.fori_loop with constant bounds"
  )


def _shards(eqn: Any) -> int:
  """Over how many devices a shard_map splits work (copies count once)."""
  axes = set()
  for spec in (*eqn.params["in_specs"], *eqn.params["out_specs"]):
    for entry in spec:
      axes.update((entry,) if isinstance(entry, str) else entry or ())
  return math.prod(eqn.params["mesh"].shape[axis] for axis in axes)


def _pallas_name(eqn: Any) -> str:
  name = eqn.params.get("name_and_src_info") or eqn.params.get("name")
  return str(getattr(name, "name", name))


def _size(var: Any) -> int:
  return math.prod(getattr(var.aval, "shape", ()))


def _live(jaxpr: Any) -> Any:
  """Without the equations nobody reads: XLA does not run them either."""
  return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _inline_remat(jaxpr: Any) -> Any:
  """The jaxpr with `jax.checkpoint` replaced by plain calls, at any depth."""

  def rebuild(value):
    if isinstance(value, jex.ClosedJaxpr):
      return value.replace(jaxpr=_inline_remat(value.jaxpr))
    if isinstance(value, jex.Jaxpr):
      return _inline_remat(value)
    if isinstance(value, (tuple, list)) and any(
      isinstance(v, (jex.ClosedJaxpr, jex.Jaxpr)) for v in value
    ):
      return type(value)(rebuild(v) for v in value)
    return value

  eqns = []
  for eqn in jaxpr.eqns:
    if eqn.primitive is jex.primitives.remat_p:
      body = jex.ClosedJaxpr(_inline_remat(eqn.params["jaxpr"]), ())
      eqn = eqn.replace(
        primitive=jex.primitives.closed_call_p, params={"call_jaxpr": body}
      )
    else:
      eqn = eqn.replace(
        params={key: rebuild(value) for key, value in eqn.params.items()}
      )
    eqns.append(eqn)
  return jaxpr.replace(eqns=eqns)
