"""Images to a tokenizer's latents, which become data (data/latents.py)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.core.log import read_json
from vitscale.data import given, latents, pipeline, sources, transforms
from vitscale.data import source as source_lib
from vitscale.parent import Parent
from vitscale.tokenizer import Tokenizer

SAVED = 4096  # images between two notes of what is written


def text(folder: str, card: Mapping[str, Any]) -> str:
  """The result for a terminal."""
  shape = " x ".join(map(str, card["shape"]))
  what = "floats" if card["vocabulary"] is None else "codes"
  counts = ", ".join(
    f"{one['examples']} of {name}" for name, one in card["splits"].items()
  )
  return (
    f"{counts}: {shape} {what} each, of {card['tokenizer']['path']}\n"
    f"train on them with data.source=latents data.path={folder}"
  )


def encode(
  path: str | Path,
  out: str | Path,
  *,
  data: Sequence[str] = (),
  splits: Sequence[str] | None = None,
  transform: str | None = None,
  batch_size: int = 64,
) -> dict[str, Any]:
  """Writes the latents of images into a folder (data/latents.py).

  Nothing is augmented. Stopped, the same call goes on.

  Args:
    path: of the tokenizer: a workdir, or a step folder.
    out: the folder, new or begun by the same call.
    data: see `given.group`.
    splits: of the data; the first one's statistics normalise.
    transform: of each image, by default that of the run's evaluations.
    batch_size: images encoded at once.

  Returns:
    The folder's card.

  Raises:
    UserError: no tokenizer, images that it can't see, or another folder.
  """
  if batch_size < 1:
    raise UserError(f"--batch-size {batch_size}: should be 1 or more")
  tokenizer = Tokenizer(path)
  config = read_json(Parent(path).folder / "run.json")["config"]
  groups = list(config.get("evals", {}).values())
  if transform is None:
    transform = groups[0].get("transform", "") if groups else ""
  shape = tokenizer.origin.shape
  group, whole = given.group(config["data"], data, shape)
  if splits is None:
    first = config["train"].get("split", "train")
    splits = [first, *(g.get("split", "val") for g in groups)]
    splits = list(dict.fromkeys(splits))
    if whole:
      group, splits = group | given.ALL, ["train"]
  named = group.pop("source")
  found = {name: sources.make(named, split=name, **group) for name in splits}
  empty = [name for name, source in found.items() if not len(source)]
  if empty:
    raise UserError(f"--splits: {empty[0]!r} has no images")
  origin = tokenizer.origin
  writer = latents.Writer.open(
    Path(out).expanduser(),
    {
      "tokenizer": {
        "path": origin.path, "fingerprint": origin.fingerprint,
        "shape": list(origin.shape),
      },
      "vocabulary": tokenizer.vocabulary,
      "shape": list(tokenizer.shape),
      "data": {"source": named, "options": group, "transform": transform},
      "class_names": list(found[splits[0]].class_names),
      "splits": {
        name: {"examples": len(source), "fingerprint": source.fingerprint}
        for name, source in found.items()
      },
    },
  )  # fmt: skip
  for name, source in found.items():
    start = writer.written(name)
    if start == len(source):
      continue
    array = writer.array(name, source.label)
    rest = source_lib.subset(source, np.arange(start, len(source)))
    batches = pipeline.eval_batches(
      rest, batch_size=batch_size, transform=transforms.parse(transform)
    )
    with batches:
      for batch in batches:
        _check(batch["image"].shape[1:], origin.shape)
        z = tokenizer.encode(batch["image"])[batch["weight"] > 0]
        array[start : start + len(z)] = z
        start += len(z)
        if start == len(source) or start % SAVED < batch_size:
          writer.wrote(name, array, start)
  if tokenizer.vocabulary is None:
    mean, std = latents.statistics(writer.array(splits[0], ()))
  else:
    mean, std = [0.0], [1.0]  # codes stay what they are
  writer.card |= {"mean": mean, "std": std}
  writer.save()
  return writer.card


def _check(shape: tuple[int, ...], learned: tuple[int, ...]) -> None:
  """Raises UserError for images of another shape than the run's."""
  if shape != learned:
    texts = (" x ".join(map(str, s)) for s in (shape, learned))
    raise UserError(
      "images of the data are {}, of the run {}: give --transform".format(
        *texts
      )
      + f" 'resize({learned[0]})'"
    )
