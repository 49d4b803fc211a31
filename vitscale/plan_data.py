"""Data for a plan: the real ones if they are here, else their shapes.

A plan needs of its images their number, classes and size after transforms;
nobody should have to download ImageNet to learn what training on it costs.
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.data import source as source_lib
from vitscale.data import sources

# Images of a set that isn't here are as large as this before transforms.
PIXELS = 512

_sources: dict[str, Any] = {}


def source(
  config: Any, request: Mapping[str, Any]
) -> tuple[source_lib.Source, dict[str, Any]]:
  """The config's training data if they are here, else images of zeros.

  How many there are and of how many classes say, in this order, the request,
  the data, and the config file's `DATA`.
  """
  asked = dict(config.data)
  key = json.dumps([asked, config.train.get("split", "train")], default=str)
  if key in _sources:
    return _sources[key]
  given = {k: request[k] for k in ("classes", "examples") if request.get(k)}
  name, found, missing = asked.pop("source"), None, None
  asked.pop("skip_corrupt", None)  # decoding every file tells nothing new
  if len(given) < 2:
    try:
      found = sources.make(
        name, split=config.train.get("split", "train"), **asked
      )
    except UserError as error:
      missing = error
      path = config_lib.find(request["config"].partition(":")[0], "configs")
      known = getattr(config_lib.load_module(path), "DATA", {})
      given = {**known, **given}
  if found is None and len(given) < 2:
    raise UserError(
      f"{missing}; to plan without the data say --classes and --examples"
    )
  if found is None:
    channels = asked.get("channels", 3)
    shape = (PIXELS, PIXELS, channels)
    if "frames" in asked:  # videos
      side = asked.get("size") or PIXELS
      frames = max(asked["frames"], asked.get("window", 0))
      shape = (frames, side, side, channels)
    found = source_lib.Source(
      images=functools.partial(_blank, shape),
      label=np.zeros(given["examples"], np.int32),
      class_names=tuple(str(i) for i in range(given["classes"])),
      shape=None,
      mean=tuple(asked.get("mean") or (0.5,) * channels),
      std=tuple(asked.get("std") or (0.5,) * channels),
      fingerprint="not here",
    )
  data = {
    "here": not given or (missing is None and len(given) < 2),
    "classes": found.classes,
    "examples": len(found),
  }
  _sources[key] = found, data
  return found, data


def _blank(shape: tuple[int, ...], indices: np.ndarray) -> list[np.ndarray]:
  image = np.zeros(shape, np.uint8)
  return [image] * len(indices)
