"""How well images come back: error, PSNR, SSIM, and distances of the whole set.

    evals.NAME = {"name": "reconstruction", "split": "test", "rfd": True}

Scores are of images as 8-bit pixels hold them, in 0..1, but `mse`, which is
the task's own before rounding. `psnr` is the mean over images, as tables have
it; `psnr_of_mse` is that of the mean of `mse`, which bad images pull down
further. None counts as above CEILING, what rounding to 8 bits leaves: else one
exact copy would make the mean infinite.

`rfd_NET` is the Frechet distance between originals and reconstructions in the
features of a network, `net` (metrics/networks.py): by default
`rfd_random_conv`, which is no FID. With FID's own Inception, `net =
"inception(path='FILE')"`, it is called `rfid`. It is biased upward by order
1/n: compare at equal `examples` only. `rfd_NET_floor` is what two random
halves of the originals measure, at n/2 a side. Reconstructions share their
images with the originals, so a distance may lie below: they then differ by
less than fresh images would. With `kid`, KID, precision and recall in the same
features, of up to samples.KEPT images; they share images there too.
`lpips = "lpips(path='FILE')"` adds the mean LPIPS of the pairs. Frames of a
video are no sample of images: videos have scores that are means over frames,
and no such distances.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import sharding
from vitscale.core.errors import UserError
from vitscale.evals import mean, real_rows, warn
from vitscale.metrics import features, images, networks, samples
from vitscale.metrics.networks import Network

PLAIN = True  # asks `task.predict` alone: draws will do
OPTIONS = ("rfd", "net", "kid", "lpips")
TRACED = True  # at the start: a task may predict no reconstruction
UNLABELLED = True  # any source of fitting images will do

ROUNDING = 1 / 12 / 255**2  # mean squared error of rounding to 8 bits
CEILING = -10 * math.log10(ROUNDING)  # 58.9 dB
SIDE = 2 * images.RADIUS + 1  # pixels that SSIM needs
PIXELS = ("original", "reconstruction")
_warn = functools.partial(warn, "reconstruction")


def require(
  n: int, *, rfd: bool = True, kid: bool = False, **options: Any
) -> None:
  """Raises UserError where n images are too few for every score."""
  net, _ = _networks(rfd=rfd, kid=kid, **options)
  if net:
    off = "rfd" if rfd else "kid"
    where = f"leave it out with --evals 'reconstruction({off}=False)'"
    samples.require(n, net, where, prefix="r", frechet=rfd, kid=kid)


def _networks(
  *, rfd: bool = True, net: str = features.NAME, kid: bool = False,
  lpips: str = "",
) -> tuple[Network | None, Network | None]:  # fmt: skip
  """What sees images and what compares pairs, where they are asked for."""
  return (
    networks.network(net) if rfd or kid else None,
    networks.distance(lpips) if lpips else None,
  )


def make(
  task: Any, model: Any, **options: Any
) -> Callable[..., dict[str, Any]]:
  """A jittable `(variables, batch) -> rows`, see `per_image`.

  Besides `pixels`, originals and reconstructions (b, h, w, c) in 0..1, where a
  network is to see them.

  Raises:
    UserError: on tracing, the task predicts no reconstruction; or a network
      that isn't there.
  """
  asked = [net for net in _networks(**options) if net]

  def rows(
    variables: Mapping[str, Any], batch: Mapping[str, jax.Array]
  ) -> dict[str, Any]:
    said = task.predict(model, variables, batch)
    if any(name not in said for name in PIXELS):
      raise UserError(
        "'reconstruction' wants a task that predicts one:"
        " task.name='reconstruct'"
      )
    found = {**per_image(said), "weight": batch["weight"]}
    found = sharding.everywhere(found)
    if any(_sees(net, said[PIXELS[0]].shape) for net in asked):
      found["pixels"] = [said[name] for name in PIXELS]
    return found

  return rows


def per_image(said: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Scores (b,) of what a task predicts.

  Of videos (b, t, h, w, c) scores are means over frames. SSIM of images that
  are too small for it is left out with a warning.
  """
  x, y = (said[name] for name in PIXELS)
  found = {k: v for k, v in said.items() if k not in PIXELS and v.ndim == 1}
  shape = x.shape[-3:]
  x, y = (a.reshape(-1, *shape) for a in (x, y))
  mean = lambda score: score.reshape(len(said[PIXELS[0]]), -1).mean(1)
  found["psnr"] = mean(jnp.minimum(images.psnr(x, y), CEILING))
  side = min(shape[:2])
  if side >= SIDE:
    found["ssim"] = mean(images.ssim(x, y))
  else:
    _warn(f"ssim is left out: images of {side} px, it needs {SIDE}")
  return found


def _sees(net: Network, shape: tuple[int, ...]) -> bool:
  """Whether it does, with a warning if not."""
  try:
    if len(shape) > 4:
      raise UserError(f"{net.name}: frames of a video are no sample of images")
    networks.check(net, shape)
  except UserError as error:
    _warn(f"{error}: left out")
    return False
  return True


def evaluate(
  rows: Callable[..., dict[str, Any]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  *,
  rfd: bool = True,
  kid: bool = False,
  **options: Any,
) -> dict[str, float]:
  """One pass over `batches`; features are kept as metrics/samples.py does.

  Returns:
    Means over images of `mse`, `psnr`, `ssim` and the bottleneck's penalties,
    `psnr_of_mse`; of the network `rfd_NET` or `rfid` and its `_floor`,
    `kid_NET`, `precision_NET`, `recall_NET` and `lpips_NET`, each with its
    standard error `NAME_se`; `examples`. What there are too few images for is
    left out with a warning.
  """
  net, far = _networks(rfd=rfd, kid=kid, **options)
  sets = [samples.Samples(net.dim) for _ in PIXELS] if net else []
  parts = []
  for batch in batches:
    found = rows(variables, batch)
    pixels = found.pop("pixels", None)
    keep = np.asarray(found["weight"]) > 0
    own = real_rows(found)
    if pixels:
      if far and _sees(far, pixels[0].shape):
        own[far.name] = np.asarray(far(*pixels))[keep]
      if net and _sees(net, pixels[0].shape):
        for one, x in zip(sets, pixels):
          one.add(np.asarray(net(x))[keep])
    parts.append(own)
  whole = {k: np.concatenate([one[k] for one in parts]) for k in parts[0]}
  n, out = len(whole["psnr"]), {}
  for name, value in whole.items():
    out |= mean(name, value)
  error = max(out["mse"], ROUNDING)
  out["psnr_of_mse"] = -10 * math.log10(error)
  out["psnr_of_mse_se"] = 10 / math.log(10) * out["mse_se"] / error
  if net and sets[0].n:
    more, missed = samples.compared(
      *sets, net, prefix="r", frechet=rfd, kid=kid, paired=True
    )
    for reason in missed:
      _warn(reason)
    out |= more
  return {**out, "examples": n}


def facts(
  task: Any,
  model: Any,
  variables: Any,
  batch: Mapping[str, Any],
  **options: Any,
) -> dict[str, Any]:
  """What belongs with the scores: the networks, and what an image costs.

  Returns:
    `feature_net` and `lpips_net`, identities of networks, where there are any;
    where the model's `out` has a latent, `E`, its floats an image, and
    `pixels_per_float`, values of the image for each of them (ViTok,
    2501.09755, section 2).
  """
  see = lambda v, b: model.apply(v, task.normalise(b["image"]))[1]
  out = jax.eval_shape(see, variables, batch)
  names = zip(("feature_net", "lpips_net"), _networks(**options))
  found: dict[str, Any] = {}
  if batch["image"].ndim == 4:
    found |= {name: net.identity for name, net in names if net}
  if "latent" in out:
    found["E"] = math.prod(out["latent"].shape[1:])
    found["pixels_per_float"] = math.prod(batch["image"].shape[1:]) / found["E"]
  return found
