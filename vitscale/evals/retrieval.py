"""Nearest neighbours: queries seen by one encoder, a gallery by another.

    evals.NAME = {
      "name": "retrieval", "split": "val",
      "gallery": {"split": "train", "data": {"limit": 5000}},
      "k": (1, 20),
    }

Weighted k-nearest-neighbour accuracy as DINO measures it (2104.14294, section
4.1 and its `eval_knn.py`; after Wu et al., 1805.01978): cosine similarity s of
pooled features before the head, a neighbour votes for its class with
exp(s / 0.07). Of a nested run every part asks and every part is a gallery
(`ffn=1/8>full/knn1`): MatFormer (2310.07707, section 4.2) embeds a gallery once
with the largest and queries with what a device can afford.

Without `gallery` the queries are their own, each left out for itself. Parts of
another residual width live in another space: `pairs="same"` asks each its own
gallery, `prefix=True` compares the first features that both have, which means
something only where those were trained to (Matryoshka, 2205.13147).
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import sharding
from vitscale.core.errors import UserError, nearest
from vitscale.elastic import spec as spec_lib
from vitscale.evals import Features, gather, pooled, share

TEMPERATURE = 0.07
PAIRS = ("all", "same")
OPTIONS = ("k", "pairs", "prefix")  # of a config: of `make` and `evaluate`
DATA = ("gallery",)  # a group of a config: batches for `evaluate`
ALONE = True  # without a gallery, queries are their own

Array = np.ndarray


# ------------------------------------------------------------------ neighbours


def knn(
  query: Features,
  gallery: Features,
  *,
  k: Sequence[int] = (1, 20),
  leave_one_out: bool = False,
  prefix: bool = False,
  temperature: float = TEMPERATURE,
  rows: int = 1024,
) -> dict[int, float]:
  """Accuracy of weighted k-nearest-neighbour classification, by k.

  Equal similarities: the earlier image of the gallery is nearer. Equal votes:
  the lower class.

  Args:
    query, gallery: features of one width, or see `prefix`.
    k: how many neighbours vote.
    leave_one_out: both are the same images; none is its own neighbour.
    prefix: compare the first features that both have.
    temperature: of the votes; infinite, all neighbours weigh the same.
    rows: queries, and images of the gallery, compared at once: memory is
      rows^2 similarities beside the features.

  Raises:
    UserError: other widths, more neighbours than images, or features that
      are not finite.
  """
  a, b = query.x.shape[1], gallery.x.shape[1]
  if a != b and not prefix:
    raise UserError(
      f"queries have {a} features, the gallery {b}: only encoders of one width"
      f" share a space (prefix=True compares the first {min(a, b)})"
    )
  count = len(gallery.x) - leave_one_out
  if min(k) < 1 or max(k) > count:
    raise UserError(f"k={tuple(k)}: should be 1 to {count}, the gallery's size")
  if leave_one_out and len(query.x) != len(gallery.x):
    raise UserError(
      f"leave one out: {len(query.x)} queries are not the {len(gallery.x)}"
      " images of the gallery"
    )
  near = _unit(gallery.x[:, : min(a, b)], "the gallery")
  asked = _unit(query.x[:, : min(a, b)], "queries")
  classes = int(max(query.label.max(), gallery.label.max())) + 1
  known = _blocks(near, min(rows, len(near)))
  own = np.arange(len(asked)) if leave_one_out else np.full(len(asked), -1)
  step = min(rows, len(asked))
  hits = dict.fromkeys(k, 0)
  for start in range(0, len(asked), step):
    part = slice(start, start + step)
    some, mine = _blocks(asked[part], step)[0], _blocks(own[part], step)[0]
    said = _vote(
      some, known, gallery.label, mine, len(near), temperature,
      k=tuple(k), classes=classes,
    )  # fmt: skip
    truth = query.label[part]
    for size, found in zip(k, jax.device_get(said)):
      hits[size] += int((found[: len(truth)] == truth).sum())
  return {size: n / len(asked) for size, n in hits.items()}


def _unit(x: Array, what: str) -> Array:
  if not np.isfinite(x).all():
    raise UserError(f"features of {what} are not finite")
  x = np.asarray(x, np.float32)
  return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _blocks(x: Array, rows: int) -> Array:
  """(n, ...) -> (blocks, rows, ...), filled up with zeros."""
  fill = -len(x) % rows
  x = np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))
  return x.reshape(-1, rows, *x.shape[1:])


@functools.partial(jax.jit, static_argnames=("k", "classes"))
def _vote(query, gallery, label, own, count, temperature, *, k, classes):
  """The class that the nearest k vote for, (q,) for each k.

  Args:
    query: (q, d) of length 1.
    gallery: (blocks, rows, d) of length 1; rows from `count` on are filling.
    label: (n,) of the gallery.
    own: (q,) the image of the gallery that a query is, -1 for none.
  """
  most, rows = max(k), gallery.shape[1]

  def fold(best, block):
    number, x = block
    at = number * rows + jnp.arange(rows)
    s = jnp.matmul(query, x.T, precision="highest")
    not_this = (at >= count)[None] | (at[None] == own[:, None])
    s = jnp.where(not_this, -jnp.inf, s)
    # top_k keeps the first of equals, and earlier blocks stand first.
    s = jnp.concatenate([best[0], s], 1)
    ids = jnp.concatenate([best[1], jnp.broadcast_to(at, (len(s), rows))], 1)
    s, where = jax.lax.top_k(s, most)
    return (s, jnp.take_along_axis(ids, where, 1)), None

  start = (
    jnp.full((len(query), most), -jnp.inf),
    jnp.zeros((len(query), most), jnp.int32),
  )
  numbers = jnp.arange(len(gallery))
  (s, ids), _ = jax.lax.scan(fold, start, (numbers, gallery))
  votes, found = jnp.exp(s / temperature), []
  for size in k:
    place = jnp.arange(len(query))[:, None], label[ids[:, :size]]
    total = jnp.zeros((len(query), classes)).at[place].add(votes[:, :size])
    found.append(total.argmax(-1))
  return found


def matrix(
  queries: Mapping[str, Features],
  galleries: Mapping[str, Features],
  *,
  pairs: str = "all",
  **options: Any,
) -> dict[tuple[str, str], dict[int, float]]:
  """`knn` of every (query encoder, gallery encoder), or of equal names."""
  return {
    (i, j): knn(query, gallery, **options)
    for i, query in queries.items()
    for j, gallery in galleries.items()
    if pairs == "all" or i == j
  }


# ------------------------------------------------------------------ evaluation


def make(
  task: Any,
  model: Any,
  *,
  k: Sequence[int] = (1, 20),
  pairs: str = "all",
  prefix: bool = False,
) -> Callable[..., dict[str, Any]]:
  """A jittable `(variables, batch) -> features` by encoder, `label`, `weight`.

  Raises:
    UserError: options that make no sense, a task without images, or parts of
      several widths, all of whose pairs are asked for.
  """
  if not k or any(type(size) is not int or size < 1 for size in k):
    raise UserError(f"evals: retrieval k={k!r}: write for example (1, 20)")
  if pairs not in PAIRS:
    raise UserError(f"evals: retrieval pairs {pairs!r}{nearest(pairs, PAIRS)}")
  if not hasattr(task, "normalise"):
    raise UserError("evals: 'retrieval' wants a task of images")
  texts = tuple(dict.fromkeys(("full", *getattr(task, "granularities", ()))))
  if pairs == "all" and not prefix:
    _check_widths(model, texts)

  def features(variables: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for text in texts:
      little, own = model, variables
      if text != "full":
        little, own = task.part(model, variables, batch, text)
      found[text] = pooled(task, little, own, batch["image"])
    rows = {"label": batch["label"], "weight": batch["weight"]}
    return sharding.everywhere({"features": found, **rows})

  return features


def _check_widths(model: Any, texts: Sequence[str]) -> None:
  widths = {}
  for text in texts:
    options = spec_lib.options_of(
      spec_lib.small(model, spec_lib.parse(text))[0]
    )
    width = options.get("out_dim") or options.get("width")
    widths.setdefault(width, text)
  if len(widths) > 1:
    (a, one), (b, other), *_ = widths.items()
    raise UserError(
      f"evals: retrieval: '{one}' has {a} features, '{other}' {b}: want"
      " pairs='same', or prefix=True for the first that both have"
    )


def collect(
  features: Callable[..., dict[str, Any]],
  variables: Any,
  batches: Iterable[Mapping[str, Any]],
) -> dict[str, Features]:
  """All real rows of `batches` by encoder."""
  whole = gather(features, variables, batches)
  return {
    text: Features(x, whole["label"]) for text, x in whole["features"].items()
  }


def evaluate(
  features: Callable[..., dict[str, Any]],
  variables: Any,
  batches: Iterable[Mapping[str, Any]],
  gallery: Iterable[Mapping[str, Any]] | None = None,
  *,
  k: Sequence[int] = (1, 20),
  pairs: str = "all",
  prefix: bool = False,
) -> dict[str, float]:
  """One pass over queries and gallery.

  Returns:
    `knn1`, `knn1_se` and so on of the whole model, `examples` asked and the
    `gallery`'s size; of parts below `SPEC/`, of two below `QUERY>GALLERY/`.
  """
  queries = collect(features, variables, batches)
  known = queries
  if gallery is not None:
    known = collect(features, variables, gallery)
  found = matrix(
    queries, known, pairs=pairs, k=k, prefix=prefix,
    leave_one_out=gallery is None,
  )  # fmt: skip
  n, out = len(queries["full"].x), {}
  for (i, j), accuracies in found.items():
    label = f"{i}/" if i == j else f"{i}>{j}/"
    label = "" if i == j == "full" else label
    for size, p in accuracies.items():
      out |= share(f"{label}knn{size}", p, n)
  return {**out, "examples": n, "gallery": len(known["full"].x)}
