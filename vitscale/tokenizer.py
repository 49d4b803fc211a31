"""A trained tokenizer: images to latents or codes, and back.

    tokenizer = Tokenizer("out/tokenizer")
    z = tokenizer.encode(images)     # uint8 (b, h, w, c) -> (b, gh, gw, c)
    tokenizer.decode(z)              # -> uint8 (b, h, w, c)

Nothing is drawn: of a KL bottleneck the mean is taken. A tokenizer whose
bottleneck has entries gives codes, int32 (b, gh, gw, 1), or (b, 1, n, 1) where
they are no grid.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale import workdir
from vitscale.core.errors import UserError
from vitscale.data.source import Origin
from vitscale.parent import Parent
from vitscale.tasks import classify


class Tokenizer:
  """A run that encodes and decodes.

  Attributes:
    origin: where it is, what its weights are, and what it sees.
    bench, variables: of the run.
    vocabulary: entries of its codes; None where it makes latents.
    shape: of the latents or codes of an image, (h, w, c).
  """

  def __init__(self, path: str | Path):
    """Restores a run.

    Raises:
      UserError: no run, one that does not encode images of one size, or one of
        videos.
    """
    parent = Parent(path)
    bench, variables, step = workdir.restored(path)
    self.bench, self.variables = bench, variables
    model, shape = bench.model, bench.inputs[1]["image"].shape[1:]
    if not (hasattr(model, "encode") and hasattr(model, "decode")):
      family = type(model).__module__.rpartition(".")[2]
      raise UserError(
        f"{path} is no tokenizer: {family!r} neither encodes nor decodes; give"
        " a run of model.family='vitok'"
      )
    if len(shape) != 3:
      raise UserError(f"{path} is a tokenizer of videos: nothing takes those")
    folder = parent.folder.absolute() / "checkpoints" / str(step)
    self.origin = Origin(str(folder), parent.facts["digest"], shape)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.uint8)
    z = jax.eval_shape(self._encode, variables, image)
    self.shape: tuple[int, int, int] = z.shape[1:]
    codes = jnp.issubdtype(z.dtype, jnp.integer)
    self.vocabulary = self._entries() if codes else None

  def encode(self, image: np.ndarray) -> np.ndarray:
    """uint8 (b, h, w, c) -> float32 latents or int32 codes (b, *shape)."""
    return np.asarray(self._encoded(self.variables, jnp.asarray(image)))

  def decode(self, z: np.ndarray) -> np.ndarray:
    """Latents or codes (b, *shape) -> uint8 (b, h, w, c)."""
    if z.shape[1:] != self.shape:
      raise UserError(
        f"latents of {z.shape[1:]}, the tokenizer makes {self.shape}"
      )
    return np.asarray(self._decoded(self.variables, jnp.asarray(z)))

  @functools.cached_property
  def _encoded(self) -> Any:
    return jax.jit(self._encode)

  @functools.cached_property
  def _decoded(self) -> Any:
    return jax.jit(self._decode)

  def _encode(self, variables: Any, image: jax.Array) -> jax.Array:
    model, task = self.bench.model, self.bench.task
    z, out = model.apply(
      variables, task.normalise(image), method=type(model).encode
    )
    z = out["indices"][..., None] if "indices" in out else z
    rows, columns = model.grid(image.shape[1:])[1:]
    if model.latent_tokens or z.shape[1] != rows * columns:
      rows, columns = 1, z.shape[1]
    return z.reshape(len(z), rows, columns, z.shape[-1])

  def _decode(self, variables: Any, z: jax.Array) -> jax.Array:
    model, task = self.bench.model, self.bench.task
    z = z.reshape(len(z), -1, z.shape[-1])
    if self.vocabulary is not None:
      look_up = lambda model, indices: model.neck.codes(indices)
      z = model.apply(variables, z[..., 0], method=look_up)
    y, _ = model.apply(
      variables, z, self.origin.shape, method=type(model).decode
    )
    y = classify.pixels(y, task.mean, task.std)
    return jnp.clip(jnp.rint(y), 0, 255).astype(jnp.uint8)

  def _entries(self) -> int:
    return self.bench.model.apply(
      self.variables, method=lambda model: model.neck.entries
    )


def of(origin: Origin, path: str | Path | None = None) -> Tokenizer:
  """The tokenizer that made some latents.

  Args:
    origin: what the latents say of it.
    path: where it is, if no longer where it was.

  Raises:
    UserError: it isn't there, or another one is.
  """
  place = Path(path or origin.path).expanduser()
  if not place.exists():
    raise UserError(
      f"the tokenizer of these latents is not at {place}: say where, by"
      " data.tokenizer=PATH, or --tokenizer of `vitscale sample`"
    )
  found = Tokenizer(place)
  if found.origin.fingerprint != origin.fingerprint:
    raise UserError(
      f"{path or origin.path} is not the tokenizer of these latents: its"
      f" weights are {found.origin.fingerprint}, theirs {origin.fingerprint}"
    )
  return found
