"""Images that a selector may see: held out from training, and not the test's.

What was chosen on images looks better on them than it is, so the images that a
choice is made on are none that it is reported on. By default they are the
`val` split of the training data: Fashion-MNIST and the generated sources cut
it from their training images, a folder without val/ does too. A source without
one is refused; the test split is taken only when asked for, and said aloud.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitscale.core.config import Reader
from vitscale.core.errors import UserError, nearest
from vitscale.data import pipeline, sources, transforms

SPLIT = "val"


@dataclasses.dataclass(frozen=True)
class Apart:
  """Images for selection.

  Attributes:
    source: name of the data source.
    split: of it.
    images: how many.
    evals: the config's evaluations of these very images; what they say of a
      model chosen here flatters it.
    batches: one pass, with `weight`.
  """

  source: str
  split: str
  images: int
  evals: tuple[str, ...]
  batches: Callable[[], Iterable[Mapping[str, Any]]]

  def facts(self) -> dict[str, Any]:
    """For a result's JSON."""
    return {
      "source": self.source, "split": self.split, "images": self.images,
      "evals": list(self.evals),
    }  # fmt: skip


def images(config: Mapping[str, Any], label: str | None = None) -> Apart:
  """The images that a selector sees.

  Args:
    config: of the nested run.
    label: the entry of its `evals` that the user asks for; by default the
      `val` split of its data.

  Raises:
    UserError: no such evaluation, no such split, or one trained on.
  """
  groups = {k: _asked(config, g) for k, g in config.get("evals", {}).items()}
  if label is not None and label not in groups:
    raise UserError(f"no evals.{label} to score on{nearest(label, groups)}")
  group = groups[label] if label is not None else _default(config, groups)
  data, split = group["data"], group["split"]
  trained = _asked(config, {"split": config["train"].get("split", "train")})
  if _images(group) == _images(trained):
    raise UserError(
      f"{data['source']} {split} was trained on: scores there say nothing of"
      " held-out images; name another evaluation with --score-on"
    )
  same = tuple(
    name for name, other in groups.items() if _images(other) == _images(group)
  )
  _warn(group, groups, same, asked=label is not None)
  source = _make(data, split)
  batches = functools.partial(
    pipeline.eval_batches,
    source,
    batch_size=group["batch_size"],
    transform=transforms.parse(group["transform"]),
  )
  return Apart(data["source"], split, len(source), same, batches)


def _asked(
  config: Mapping[str, Any], group: Mapping[str, Any]
) -> dict[str, Any]:
  """An evaluation's data, split, transform and batch size, defaults filled."""
  return {
    "data": {**config["data"], **group.get("data", {})},
    "split": group["split"],
    "transform": group.get("transform", ""),
    "batch_size": group.get("batch_size", config["batch_size"]),
  }


def _images(group: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
  """What images a group has, but for how many of them and how they look."""
  looks = ("limit", "permute_seed", "upsample", "tile", "size")
  return {k: v for k, v in group["data"].items() if k not in looks}, group[
    "split"
  ]


def _default(
  config: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any]:
  """As the run evaluates `val`; else `val`, prepared as its first one."""
  own = [g for g in groups.values() if g["data"] == dict(config["data"])]
  for group in own:
    if group["split"] == SPLIT:
      return group
  like = own[0] if own else _asked(config, {"split": SPLIT})
  return {**like, "split": SPLIT}


def _make(data: Mapping[str, Any], split: str) -> Any:
  options = Reader(data).kwargs("source")
  try:
    return sources.make(data["source"], split=split, **options)
  except UserError as error:
    raise UserError(
      f"no images to select on ({error}): selecting on the test split would"
      " leak; give data a val split, or name an evaluation with --score-on"
    ) from None


def _warn(group, groups, same, *, asked: bool) -> None:
  others = [name for name in groups if name not in same]
  if group["split"] == "test":
    text = (
      "selecting on the test split: its scores of the chosen model are no"
      f" test any more; leave --score-on out to select on {SPLIT}"
    )
  elif same and not others and not asked:
    text = (
      f"the run evaluates {SPLIT} only, and selection sees it too: these scores"
      " flatter the chosen model; evaluate it on other images"
    )
  else:
    return
  print(f"warning: {text}", file=sys.stderr)
