"""Nearest neighbours: how well frozen features sort new images.

    evals.NAME = {
      "name": "knn", "split": "val", "k": (10, 20, 100, 200),
      "gallery": {"split": "train", "data": {"limit": 5000}},
    }
    vitscale eval CKPT --evals "knn(k=20)"

DINO's protocol (2104.14294, section 4.1 and `eval_knn.py`, after Wu et al.,
1805.01978): cosine similarity s of the pooled features, each of the nearest k
votes for its class with exp(s / 0.07). `vote="uniform"` counts heads, as
scikit-learn's KNeighborsClassifier does. The gallery is `train` unless it is
named; queries of that split are left out for themselves. The classes may be
others than those of the run. Parts of nested runs are retrieval's business.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vitscale import evals
from vitscale.core.errors import UserError, nearest
from vitscale.evals import retrieval

VOTES = ("similarity", "uniform")
OPTIONS = ("k", "vote", "temperature")
DATA = {"gallery": "train"}  # a group of a config, and the split without it
ALONE = True  # of one split, each is asked of the others
UNLABELLED = True  # any classes will do


def make(
  task: Any,
  model: Any,
  *,
  k: int | Sequence[int] = (1, 20),
  vote: str = "similarity",
  temperature: float = retrieval.TEMPERATURE,
) -> Callable[..., dict[str, Any]]:
  """A jittable `(variables, batch) -> rows`, see `evals.frozen`.

  Raises:
    UserError: options that make no sense, or a task without images.
  """
  sizes = _sizes(k)
  if not sizes or any(type(size) is not int or size < 1 for size in sizes):
    raise UserError(f"evals: knn k={k!r}: write for example (1, 20)")
  if vote not in VOTES:
    raise UserError(f"evals: knn vote {vote!r}{nearest(vote, VOTES)}")
  if type(temperature) not in (int, float) or not temperature > 0:
    raise UserError(f"evals: knn temperature={temperature!r}: is above 0")
  return evals.frozen(task, model, "knn")


def evaluate(
  rows: Callable[..., Mapping[str, Any]],
  variables: Mapping[str, Any],
  batches: Iterable[Mapping[str, Any]],
  gallery: Iterable[Mapping[str, Any]] | None = None,
  *,
  k: int | Sequence[int] = (1, 20),
  vote: str = "similarity",
  temperature: float = retrieval.TEMPERATURE,
) -> dict[str, float]:
  """One pass over queries and gallery.

  Returns:
    `knn20` and `knn20_se` by k, `examples` asked and the `gallery`'s size.

  Raises:
    UserError: more neighbours than the gallery has images.
  """
  query = evals.seen(rows, variables, batches, "queries")
  known = query
  if gallery is not None:
    known = evals.seen(rows, variables, gallery, "the gallery")
  found = retrieval.knn(
    query, known, k=_sizes(k), leave_one_out=gallery is None,
    temperature=math.inf if vote == "uniform" else temperature,
  )  # fmt: skip
  n, out = len(query.x), {}
  for size, p in found.items():
    out |= evals.share(f"knn{size}", p, n)
  return {**out, "examples": n, "gallery": len(known.x)}


def _sizes(k: int | Sequence[int]) -> tuple[int, ...]:
  return (k,) if isinstance(k, int) else tuple(k)
