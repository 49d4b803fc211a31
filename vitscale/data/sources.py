"""Sources by name, as configs ask for them.

  source = sources.make("fashion_mnist", split="train", size=14)
  source.read(np.array([5, 3]))  # {"image": uint8 (2, 14, 14, 1), "label"}

A function of one of `MODULES` that takes a `split` and returns a `Source` is
found by its name.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from vitscale.core.call import bind
from vitscale.core.errors import UserError, nearest
from vitscale.data import (
  array_record,
  arrays,
  crops,
  fashion,
  fields,
  folder,
  latents,
  listops,
  lra,
  lra_pictures,
  parquet,
  pathfinder,
  scenes,
  synthetic,
  table,
  tfds,
  video,
  webdataset,
)
from vitscale.data.source import (
  Source,
  limited,
  permuted,
  readable,
  tiled,
  upsampled,
)

MODULES = (
  array_record, arrays, crops, fashion, fields, folder, latents, listops, lra,
  lra_pictures, parquet, pathfinder, scenes, synthetic, table, tfds, video,
  webdataset,
)  # fmt: skip


def makers() -> dict[str, Callable[..., Source]]:
  """Every public function that makes a source of a `split`, by name."""
  found = {}
  for module in MODULES:
    for name, value in inspect.getmembers(module, inspect.isfunction):
      signature = inspect.signature(value)
      makes = signature.return_annotation is Source
      if makes and "split" in signature.parameters and name[0] != "_":
        found[name] = value
  return found


def make(
  name: str,
  *,
  skip_corrupt: bool = False,
  limit: int | None = None,
  permute_seed: int | None = None,
  upsample: int = 1,
  tile: int = 1,
  **kwargs: Any,
) -> Source:
  """The source `name(**kwargs)`, then limited, permuted, upsampled, tiled.

  In that order: a permutation moves whole original pixels. With `skip_corrupt`
  all images are decoded first, and those that can't be are left out with a
  warning; else the first that is met ends the run.
  """
  known = makers()
  if name not in known:
    raise UserError(f"no data source {name!r}{nearest(name, known)}")
  options = {
    "limit": limit, "permute_seed": permute_seed, "upsample": upsample,
    "tile": tile,
  }  # fmt: skip
  for key, value in options.items():
    if value is not None and type(value) is not int:
      raise UserError(f"data: {key} must be an integer, got {value!r}")
  if type(skip_corrupt) is not bool:
    raise UserError(
      f"data: skip_corrupt is true or false, got {skip_corrupt!r}"
    )
  own = "skip_corrupt" in inspect.signature(known[name]).parameters
  if own:  # reads everything to begin with
    kwargs["skip_corrupt"] = skip_corrupt
  source = known[name](**bind(known[name], (), kwargs, what="data"))
  if skip_corrupt and not own:
    whole = kwargs.get("split", "train") == "train"
    source = readable(source, whole=whole)
  if limit is not None:
    source = limited(source, limit)
  if permute_seed is not None:
    source = permuted(source, permute_seed)
  return tiled(upsampled(source, upsample), tile)


def fingerprint(config: Mapping[str, Any]) -> str | None:
  """Of the training data a config asks for; None where they are not here."""
  data = dict(config.get("data") or {})
  name = data.pop("source", None)
  if name is None:
    return None
  split = dict(config.get("train") or {}).get("split", "train")
  key = json.dumps([name, split, data], sort_keys=True)
  if key not in _fingerprints:
    try:
      found = make(name, split=split, **data).fingerprint
    except UserError:
      return None
    _fingerprints[key] = found
  return _fingerprints[key]


_fingerprints: dict[str, str] = {}
