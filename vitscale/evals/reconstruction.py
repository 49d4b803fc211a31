"""How well images come back: error, PSNR, SSIM, and a Frechet distance.

    evals.NAME = {"name": "reconstruction", "split": "test", "rfd": True}

Scores are of images as 8-bit pixels hold them, in 0..1, but `mse`, which is
the task's own before rounding. `psnr` is the mean over images, as tables have
it; `psnr_of_mse` is that of the mean of `mse`, which bad images pull down
further. None counts as above CEILING, what rounding to 8 bits leaves: else one
exact copy would make the mean infinite.

`rfd_random_conv` is the distance between originals and reconstructions in the
features of `metrics/features.py`; it is no FID. It is biased upward by order
1/n: compare at equal `examples` only. `rfd_random_conv_floor` is what two
random halves of the originals measure, at n/2 a side. Reconstructions share
their images with the originals, so a distance may lie below: they then differ
by less than fresh images would.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import sharding
from vitscale.core.errors import UserError
from vitscale.data.random import permutation
from vitscale.metrics import features, images, moments

PLAIN = True  # asks `task.predict` alone: draws will do
OPTIONS = ("rfd",)
TRACED = True  # at the start: a task may predict no reconstruction
UNLABELLED = True  # any source of fitting images will do

RFD = f"rfd_{features.NAME}"
GROUPS = 20  # of the jackknife
# Half of the groups but one, the floor's smallest part, still has a covariance.
MINIMUM = GROUPS * -(-(features.DIM + 1) // (GROUPS // 2 - 1))
ROUNDING = 1 / 12 / 255**2  # mean squared error of rounding to 8 bits
CEILING = -10 * math.log10(ROUNDING)  # 58.9 dB
SIDE = 2 * images.RADIUS + 1  # pixels that SSIM needs
PIXELS = ("original", "reconstruction")


def require(n: int, *, rfd: bool = True) -> None:
  """Raises UserError where n images are too few for every score."""
  if rfd and n < MINIMUM:
    raise UserError(
      f"{RFD} needs {MINIMUM} images, there are {n}: take more, or leave it"
      " out with --evals 'reconstruction(rfd=False)'"
    )


def make(
  task: Any, model: Any, *, rfd: bool = True
) -> Callable[..., dict[str, jax.Array]]:
  """A jittable `(variables, batch) -> rows`, see `per_image`.

  Raises:
    UserError: on tracing, the task predicts no reconstruction.
  """

  def rows(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, jax.Array]:
    said = task.predict(model, variables, batch)
    if any(name not in said for name in PIXELS):
      raise UserError(
        "'reconstruction' wants a task that predicts one:"
        " task.name='reconstruct'"
      )
    found = per_image(said, rfd=rfd)
    return sharding.everywhere({**found, "weight": batch["weight"]})

  return rows


def per_image(
  said: Mapping[str, jax.Array], *, rfd: bool = True
) -> dict[str, jax.Array]:
  """Scores (b,) of what a task predicts, and with `rfd` features (b, d).

  Of videos (b, t, h, w, c) scores are means over frames. What images are too
  small for, or have too many channels for, is left out with a warning.
  """
  x, y = (said[name] for name in PIXELS)
  found = {k: v for k, v in said.items() if k not in PIXELS and v.ndim == 1}
  *moves, height, width, channels = x.shape[1:]
  x, y = (a.reshape(-1, height, width, channels) for a in (x, y))
  mean = lambda score: score.reshape(len(said[PIXELS[0]]), -1).mean(1)
  found["psnr"] = mean(jnp.minimum(images.psnr(x, y), CEILING))
  side = min(height, width)
  if side >= SIDE:
    found["ssim"] = mean(images.ssim(x, y))
  else:
    _warn(f"ssim is left out: images of {side} px, it needs {SIDE}")
  if rfd and moves:
    _warn(f"{RFD} is left out: frames of a video are no sample of images")
  elif rfd and side >= features.LEAST and channels in (1, 3):
    found |= {name: features.features(said[name]) for name in PIXELS}
  elif rfd:
    _warn(
      f"{RFD} is left out: images are {height}x{width} with {channels}"
      f" channels, it needs {features.LEAST} px and 1 or 3"
    )
  return found


def evaluate(
  rows: Callable[..., dict[str, jax.Array]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  *,
  rfd: bool = True,
) -> dict[str, float]:
  """One pass over `batches`; keeps 1 KB of features an image.

  Returns:
    Means over images of `mse`, `psnr`, `ssim` and the bottleneck's penalties,
    `psnr_of_mse`, `rfd_random_conv` and its `_floor`, each with its standard
    error `NAME_se`; `examples`. With fewer than MINIMUM images the distance
    is left out with a warning.
  """
  parts = []
  for batch in batches:
    found = jax.device_get(rows(variables, batch))
    keep = found.pop("weight") > 0
    parts.append({k: v[keep] for k, v in found.items()})
  whole = {k: np.concatenate([one[k] for one in parts]) for k in parts[0]}
  x, y = (whole.pop(name, None) for name in PIXELS)
  n, out = len(whole["psnr"]), {}
  for name, value in whole.items():
    value = value.astype(np.float64)
    out[name] = float(value.mean())
    out[f"{name}_se"] = float(value.std() / math.sqrt(n))
  error = max(out["mse"], ROUNDING)
  out["psnr_of_mse"] = -10 * math.log10(error)
  out["psnr_of_mse_se"] = 10 / math.log(10) * out["mse_se"] / error
  if x is not None and n >= MINIMUM:
    out |= distance(x, y)
  elif x is not None:
    _warn(f"{RFD} is left out: {n} images, it needs {MINIMUM}")
  return {**out, "examples": n}


def distance(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
  """`rfd_random_conv`, its floor and their errors.

  The errors are jackknifes over GROUPS groups of images at random: of the
  distance, originals with their reconstructions; of the floor, of one split
  in halves, so that the mean over four has at most that.

  Args:
    x, y: features (n, d) of originals and reconstructions, n >= MINIMUM.
  """
  size = len(x) // GROUPS
  order = permutation(0, 0, len(x))[: size * GROUPS]
  originals, made = (
    [moments.of(side[ids]) for ids in np.split(order, GROUPS)]
    for side in (x, y)
  )
  halves = originals[: GROUPS // 2], originals[GROUPS // 2 :]
  return {
    RFD: moments.frechet(moments.of(x), moments.of(y)),
    f"{RFD}_se": moments.standard_error(originals, made, paired=True),
    f"{RFD}_floor": float(moments.split_half(x).mean()),
    f"{RFD}_floor_se": moments.standard_error(*halves),
  }


def facts(
  task: Any,
  model: Any,
  variables: Any,
  batch: Mapping[str, Any],
  *,
  rfd: bool = True,
) -> dict[str, Any]:
  """What belongs with the scores: the network, and what an image costs.

  Returns:
    With `rfd` `feature_net`, its identity; where the model's `out` has a
    latent `E`, its floats an image, and `pixels_per_float`, values of the
    image for each of them (ViTok, 2501.09755, section 2).
  """
  see = lambda v, b: model.apply(v, task.normalise(b["image"]))[1]
  out = jax.eval_shape(see, variables, batch)
  rfd = rfd and batch["image"].ndim == 4  # videos have no such distance
  found: dict[str, Any] = {"feature_net": features.IDENTITY} if rfd else {}
  if "latent" in out:
    found["E"] = math.prod(out["latent"].shape[1:])
    found["pixels_per_float"] = math.prod(batch["image"].shape[1:]) / found["E"]
  return found


@functools.cache
def _warn(text: str) -> None:
  """Once in a process, not at every pass."""
  print(f"warning: evals: reconstruction: {text}", file=sys.stderr)
