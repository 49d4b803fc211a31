"""How near a generator's samples are to held-out images, as two sets.

    evals.NAME = {
      "name": "generation", "split": "val", "guidance": 1.5,
      "sample": "steps=50",
    }

As many samples as the split has images, or `n`, with the classes that its
images have, are compared with them in the features of a network, `net`
(metrics/networks.py): the Frechet distance `fd_NET` with `fd_NET_floor`, what
two random halves of the images measure, and `kid_NET`, `precision_NET` and
`recall_NET` of up to samples.KEPT of each. The default, `fd_random_conv`, is no
FID and is compared with nothing published. `net="inception(path='FILE')"` with
FID's own weights makes it `fid`, which is FID-50K of a paper only with 50 000
samples, its reference images and their resolution. A Frechet distance is
biased upward by order 1/n: compare at equal n only.

Errors are those of sampling, a jackknife over groups of samples and images:
another training run differs by more. Samples depend on `seed` and the batch
size, not on what was sampled before.

Where the data are latents or codes, both sides are decoded by the tokenizer
that made them: samples are compared with decoded held-out latents, not with
the images those were made of, and what the tokenizer itself loses doesn't
count (the tokenizer's `rfd` says that).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from vitscale import evals
from vitscale.core import call, sharding
from vitscale.core.errors import UserError, nearest
from vitscale.data.random import Rng
from vitscale.data.source import Origin
from vitscale.metrics import features, networks, samples
from vitscale.tasks import sample_options

OPTIONS = ("n", "guidance", "net", "seed", "sample", "fd", "kid")
TRACED = True  # at the start: a task may not sample, or not so
EAGER = True  # the task's sampler is compiled, and not what calls it
TOKENIZER = True  # is given the data's
UNLABELLED = lambda model: not _classes(model)

Array = np.ndarray | jax.Array
_everywhere = jax.jit(sharding.everywhere)


def require(
  images: int, *, n: int | None = None, net: str = features.NAME,
  fd: bool = True, kid: bool = True, **options: Any,
) -> None:  # fmt: skip
  """Raises UserError where images or samples are too few for every score."""
  least = min(images, images if n is None else n)
  off = "fd" if fd else "kid"
  where = f"leave it out with --evals 'generation({off}=False)'"
  samples.require(least, networks.network(net), where, frechet=fd, kid=kid)


def make(
  task: Any,
  model: Any,
  *,
  guidance: float | None = None,
  sample: str = "",
  **options: Any,
) -> Callable[..., jax.Array]:
  """`(variables, batch) -> samples` (b, ...) of the batch's shape and type.

  Of `label` (b,) int32 by `key`; of a batch of data, which has no key, samples
  of the first class, so that it can be traced.

  Args:
    task: has a `sample`, see tasks/__init__.py.
    model: of it.
    guidance: None or a number.
    sample: further options of `task.sample`, as "steps=50".

  Raises:
    UserError: a task that makes nothing, or options that it doesn't have.
  """
  if not hasattr(task, "sample"):
    raise UserError(
      "evals: 'generation' wants a task that makes samples: diffuse,"
      " next_token or next_scale"
    )
  known = sample_options(task)
  _, args, more = call.read(f"sample({sample})", "evals: generation: sample")
  if args:
    raise UserError(f"sample {sample!r}: name the options, as steps=50")
  for name in more:
    if name not in known:
      raise UserError(f"sample {sample!r}: no {name!r}{nearest(name, known)}")

  def made(variables: Mapping[str, Any], batch: Mapping[str, Any]) -> jax.Array:
    shape = batch["image"].shape
    key, label = batch.get("key"), np.zeros(shape[0], np.int32)
    if key is None:
      key = jax.random.key(0)
    elif _classes(model):
      label = batch["label"]
    return task.sample(
      model, variables, key, label, shape[1:], guidance=guidance, **more
    )

  return made


def _classes(model: Any) -> int:
  """0 of a model that is told none."""
  return getattr(model, "num_classes", 0)


def evaluate(
  made: Callable[..., jax.Array],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  *,
  n: int | None = None,
  net: str = features.NAME,
  seed: int = 0,
  fd: bool = True,
  kid: bool = True,
  tokenizer: Origin | None = None,
  **options: Any,
) -> dict[str, float]:
  """One pass over the images, then as many samples.

  Args:
    made: of `make`.
    variables: of the model.
    batches: of the images.
    n: samples; by default as many as images. Classes of fewer, or more, are
      drawn from the images'.
    net: what sees them.
    seed: of the samples.
    fd, kid: whether the distance is wanted, and KID, precision and recall.
    tokenizer: of latents or codes.
    **options: of `make`.

  Returns:
    `fd_NET` or `fid`, its `_floor`, `kid_NET`, `precision_NET` and
    `recall_NET`, each with its standard error `NAME_se`; `examples`, the
    samples. What there are too few for is left out with a warning.

  Raises:
    UserError: data that are no images and have no tokenizer, images that the
      network can't see, or bad `n`.
  """
  if n is not None and (type(n) is not int or n < 1):
    raise UserError(f"evals: generation: n={n!r}: should be 1 or more")
  network, labels, batch = networks.network(net), [], None
  real, fake = (samples.Samples(network.dim) for _ in range(2))
  for batch in batches:
    pixels = _pixels(batch["image"], tokenizer)
    label, weight = jax.device_get(
      _everywhere((batch["label"], batch["weight"]))
    )
    keep = weight > 0
    labels.append(label[keep])
    real.add(np.asarray(network(pixels))[keep])
  label = _drawn(np.concatenate(labels), n, seed)
  size = len(batch["image"])
  for i, start in enumerate(range(0, len(label), size)):
    mine = label[start : start + size]
    asked = {
      "image": batch["image"],
      "label": np.pad(mine, (0, size - len(mine)), "edge"),
      "key": jax.random.fold_in(jax.random.key(seed), i),
    }
    pixels = _pixels(made(variables, asked), tokenizer)
    fake.add(np.asarray(network(pixels))[: len(mine)])
  found, missed = samples.compared(real, fake, network, frechet=fd, kid=kid)
  for reason in missed:
    evals.warn("generation", reason)
  return {**found, "examples": fake.n}


def _drawn(label: np.ndarray, n: int | None, seed: int) -> np.ndarray:
  """(n,) of the labels, each as often as it can be, or one more."""
  if n is None or n == len(label):
    return label
  copies, rest = divmod(n, len(label))
  order = Rng(seed, 0, 0).choose("labels", len(label), rest)[0]
  return np.concatenate([label] * copies + [label[order]])


def _pixels(x: Array, tokenizer: Origin | None) -> Array:
  """Images (b, h, w, c) uint8 of what data or a sampler give."""
  if tokenizer is not None:
    return _tokenizer(tokenizer).decode(np.asarray(_everywhere(x)))
  if x.dtype != np.uint8 or x.ndim != 4:
    raise UserError(
      "evals: 'generation' wants images, or latents of a tokenizer; the data"
      f" are {x.dtype} of {x.shape[1:]}"
    )
  return x


@functools.lru_cache(1)
def _tokenizer(origin: Origin) -> Any:
  from vitscale import tokenizer

  return tokenizer.of(origin)


def facts(
  task: Any,
  model: Any,
  variables: Any,
  batch: Mapping[str, Any],
  *,
  net: str = features.NAME,
  **options: Any,
) -> dict[str, Any]:
  """`feature_net`, the network's identity."""
  return {"feature_net": networks.network(net).identity}
