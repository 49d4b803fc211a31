"""What an elastic model cost to train, in three ledgers.

    of one whole      training FLOPs over those of the largest model alone
    of all separate   over the sum of one model of each size, trained apart
    updates, images   optimizer steps, images seen, images that differ

No nested training is free: a claim names its ledger. A sum of losses costs as
much as the separate runs together, in fewer updates; sampling one part a step
costs that at four times the updates, or a quarter of it at as many.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale.core.errors import UserError
from vitscale.core.log import read_json

Facts = Mapping[str, Any]  # a run.json, or a result of a study


@dataclasses.dataclass(frozen=True)
class Cost:
  """Of one training.

  Attributes:
    flops: matrix products of forward and backward passes; the mean over what
      a nested run draws.
    updates: optimizer steps.
    images: seen, repeats counted.
    unique: of them; epochs are complete, so the training set or less.
  """

  flops: float
  updates: int
  images: int
  unique: int


def cost(run: Facts) -> Cost:
  """What a run cost.

  Args:
    run: its run.json, or a study's result (whose workdir has one).

  Raises:
    UserError: the facts of a run are missing.
  """
  if "train_examples" not in run and "workdir" in run:
    run = read_json(Path(run["workdir"]) / "run.json") or {}
  try:
    known, updates = run["law_variables"], int(run["step"])
    flops, images = float(known["flops"]), int(known["examples"])
    total = run["train_examples"]
  except KeyError as error:
    name = run.get("workdir", "a run")
    raise UserError(f"costs of {name}: no {error.args[0]!r} in it") from error
  return Cost(flops, updates, images, min(images, int(total)))


def compare(
  arms: Mapping[str, Cost], separate: Sequence[str], whole: str
) -> list[dict[str, Any]]:
  """A row per arm: its three ledgers.

  Args:
    arms: what each cost, the separate models among them.
    separate: names of the models trained apart, one per size.
    whole: the largest of them.

  Returns:
    `arm`, `of one whole`, `of all separate`, `updates`, `images`, `unique`.

  Raises:
    UserError: a separate model that has no cost.
  """
  missing = [name for name in (*separate, whole) if name not in arms]
  if missing:
    raise UserError(f"ledger: no run of {missing[0]!r} to compare with")
  together = sum(arms[name].flops for name in separate)
  return [
    {
      "arm": name,
      "of one whole": one.flops / arms[whole].flops,
      "of all separate": one.flops / together,
      "updates": one.updates,
      "images": one.images,
      "unique": one.unique,
    }
    for name, one in arms.items()
  ]


def text(row: Mapping[str, Any]) -> str:
  """A ledger in one line."""
  return (
    f"training cost {row['of one whole']:.3g} of the whole model alone and"
    f" {row['of all separate']:.3g} of all {row['models']} sizes apart, each on"
    f" as many images; {row['updates']} updates, {row['images']} images,"
    f" {row['unique']} of them different"
  )
