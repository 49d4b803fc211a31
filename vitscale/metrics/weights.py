"""Weights of a published network from a user's file, and which ones they are.

Nothing is downloaded. A file is a state dict with torch's names, as
.safetensors, .npz or torch's own .pth (read without torch, interop/
torch_file.py).
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core.errors import UserError
from vitscale.interop import safetensors, torch_file

Get = Callable[[str, tuple[int, ...]], jax.Array]  # name, shape -> weights
State = dict[str, np.ndarray]


def _npz(path: Path) -> State:
  try:
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  # A damaged zip makes its reader raise nearly anything.
  except Exception as error:
    raise UserError(f"{path} is no whole .npz file of arrays") from error


READERS = {
  ".safetensors": safetensors.read, ".npz": _npz, ".pth": torch_file.read,
  ".pt": torch_file.read,
}  # fmt: skip


def load(path: str | Path, sha256: str = "") -> tuple[State, str]:
  """The arrays of a file by name, and the file's SHA-256 in hex.

  Args:
    path: a file of one of READERS.
    sha256: what it should be, whole or from 8 digits on; "" for whatever.

  Raises:
    UserError: no such file, another hash, or not this format.
  """
  path = Path(path).expanduser()
  if path.suffix not in READERS:
    raise UserError(f"weights {path}: want one of {', '.join(READERS)}")
  try:
    with open(path, "rb") as file:
      found = hashlib.file_digest(file, "sha256").hexdigest()
  except OSError as error:
    raise UserError(f"can't read {path}: {error.strerror}") from error
  wanted = sha256.lower()
  if wanted and not (len(wanted) >= 8 and found.startswith(wanted)):
    raise UserError(
      f"{path}: expected sha256 {sha256}, found {found}; if these are the"
      f" weights you mean, say sha256='{found}'"
    )
  return READERS[path.suffix](path), found


def shapes(
  network: Callable[..., object], image: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
  """Name -> shape of all weights that `network(get, images)` asks for."""
  found: dict[str, tuple[int, ...]] = {}

  def get(name: str, shape: tuple[int, ...]) -> jax.Array:
    found[name] = shape
    return jnp.zeros(shape)

  jax.eval_shape(lambda x: network(get, x), jnp.zeros(image))
  return found


def chosen(
  state: State, wanted: Mapping[str, tuple[int, ...]], what: str
) -> dict[str, jax.Array]:
  """Those of a state that are wanted, float32, on the device.

  Raises:
    UserError: one is missing, or has another shape or values that are not
      finite.
  """
  out = {}
  for name, shape in wanted.items():
    if name not in state:
      has = ", ".join(list(state)[:3])
      raise UserError(f"{what}: the file has no {name}; it has {has}, ...")
    if state[name].shape != shape:
      raise UserError(
        f"{what}: {name} should be {shape}, the file has {state[name].shape}"
      )
    value = np.asarray(state[name], np.float32)
    if not np.isfinite(value).all():
      raise UserError(f"{what}: {name} has values that are not finite")
    out[name] = jnp.asarray(value)
  return out


def getter(params: Mapping[str, jax.Array]) -> Get:
  """Weights by name; `chosen` has looked at the shapes."""
  return lambda name, shape: params[name]


def conv(
  get: Get,
  x: jax.Array,
  name: str,
  width: int,
  kernel: int | tuple[int, int] = 3,
  *,
  stride: int = 1,
  padding: str | int | tuple[int, int] = 0,
  groups: int = 1,
) -> jax.Array:
  """A convolution (b, h, w, c) -> (b, h', w', width) with torch's weights.

  Args:
    get: gives `name` (width, c / groups, *kernel).
    x: what is seen.
    name: of the weights.
    width, kernel, stride, groups: of the convolution.
    padding: zeros on both sides of each axis, or XLA's word.
  """
  kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
  if not isinstance(padding, str):
    pair = (padding, padding) if isinstance(padding, int) else padding
    padding = [(p, p) for p in pair]
  weight = get(name, (width, x.shape[-1] // groups, *kernel))
  return jax.lax.conv_general_dilated(
    x, weight, (stride, stride), padding, precision="highest",
    dimension_numbers=("NHWC", "OIHW", "NHWC"), feature_group_count=groups,
  )  # fmt: skip


def batch_norm(get: Get, x: jax.Array, name: str, eps: float) -> jax.Array:
  """As it is after training: by the running mean and variance."""
  c = (x.shape[-1],)
  mean, var = get(f"{name}.running_mean", c), get(f"{name}.running_var", c)
  scale = get(f"{name}.weight", c) * jax.lax.rsqrt(var + eps)
  return (x - mean) * scale + get(f"{name}.bias", c)


def max_pool(
  x: jax.Array, size: int, stride: int, padding: str = "VALID"
) -> jax.Array:
  """The largest of each window of `size` x `size`."""
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1),
    padding,
  )  # fmt: skip
