"""A checkpoint on disk as names, shapes and a way to read one array.

Safetensors (one file, or shards with an index), npz, and torch's pickles,
which are read without running code and only when they are trusted; with a
config.json and a preprocessor_config.json beside them.
"""

import dataclasses
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from vitscale.core.errors import UserError
from vitscale.interop import safetensors, torch_file
from vitscale.interop.mapping import Preprocess

PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".tar")
STEMS = ("model", "pytorch_model", "open_clip_model")


@dataclasses.dataclass(frozen=True)
class Weights:
  """A checkpoint of somebody's.

  Attributes:
    path: of the file, or of the folder of shards.
    shapes: name -> shape and type.
    read: one array by its name.
    config: config.json; empty without.
    preprocessor: preprocessor_config.json; empty without.
  """

  path: Path
  shapes: Mapping[str, jax.ShapeDtypeStruct]
  read: Callable[[str], np.ndarray]
  config: Mapping[str, Any]
  preprocessor: Mapping[str, Any]


def open_weights(path: str | Path, *, trust: bool = False) -> Weights:
  """Opens a file or a folder.

  Args:
    path: .safetensors, .npz or a pickle of torch; or a folder with
      model.safetensors, its index of shards, or one such file.
    trust: pickles are read too.

  Raises:
    UserError: nothing there that is read here, damage, or a pickle that
      nobody said to trust.
  """
  path = Path(path).expanduser()
  if not path.exists():
    raise UserError(f"no file or folder {path}")
  file = _inside(path) if path.is_dir() else path
  folder = file.parent
  shapes, read = _opened(file, trust)
  beside = lambda name: _json(folder / name)
  config = beside("config.json") or _json(file.with_suffix(".json"))
  more = beside("preprocessor_config.json")
  return Weights(path, shapes, read, config, more)


def _inside(folder: Path) -> Path:
  """The file of a folder that has the weights."""
  kinds = ("{}.safetensors", "{}.safetensors.index.json", "{}.bin")
  for name in (kind.format(stem) for kind in kinds for stem in STEMS):
    if (folder / name).is_file():
      return folder / name
  ends = (".safetensors", ".npz", *PICKLES)
  found = sorted(p for p in folder.iterdir() if p.suffix in ends)
  if len(found) != 1:
    names = ", ".join(p.name for p in found[:4])
    raise UserError(
      f"{folder} has no model.safetensors and"
      f" {f'several files: {names}: name one' if found else 'no weights'}"
    )
  return found[0]


def _opened(file: Path, trust: bool) -> tuple[Mapping, Callable]:
  if file.name.endswith(".index.json"):
    return _shards(file)
  if file.suffix == ".safetensors":
    found = safetensors.File(file)
    return found.shapes, found.__getitem__
  if file.suffix == ".npz":
    return _npz(file)
  if file.suffix in PICKLES:
    if not trust:
      raise UserError(
        f"{file} is a pickle, safetensors is expected: convert it, or say"
        " --trust"
      )
    arrays = torch_file.read(file)
    return {k: _shape(x) for k, x in arrays.items()}, arrays.pop
  ends = ", ".join((".safetensors", ".npz", *PICKLES))
  raise UserError(f"{file}: weights are read from {ends}")


def _shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _shards(index: Path) -> tuple[Mapping, Callable]:
  where = _json(index).get("weight_map")
  if not isinstance(where, dict):
    raise UserError(f"{index} has no weight_map")
  files = {
    name: safetensors.File(index.parent / Path(name).name)
    for name in sorted(set(where.values()))
  }
  for name, shard in where.items():
    if name not in files[shard].shapes:
      raise UserError(f"{index}: {shard} has no {name}")
  shapes = {name: files[shard].shapes[name] for name, shard in where.items()}
  return shapes, lambda name: files[where[name]][name]


def _npz(file: Path) -> tuple[Mapping, Callable]:
  shapes = {}
  try:
    with zipfile.ZipFile(file) as members:
      for member in members.namelist():
        with members.open(member) as stream:
          version = np.lib.format.read_magic(stream)
          head = np.lib.format.read_array_header_1_0
          if version != (1, 0):
            head = np.lib.format.read_array_header_2_0
          shape, _, dtype = head(stream)
        shapes[member.removesuffix(".npy")] = jax.ShapeDtypeStruct(shape, dtype)
    arrays = np.load(file, allow_pickle=False)
  except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
    raise UserError(f"{file} is no whole npz file of arrays") from error

  def read(name: str) -> np.ndarray:
    try:
      x = arrays[name]
      # What numpy makes of bfloat16.
      return x.view(ml_dtypes.bfloat16) if x.dtype == "V2" else x
    except (OSError, ValueError, zipfile.BadZipFile) as error:
      raise UserError(f"{file} is no whole npz file of arrays") from error

  return shapes, read


def _json(path: Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} is no JSON file") from error
  return found if isinstance(found, dict) else {}


# -------------------------------------------------------------- preprocessing


def preprocess(weights: Weights, default: Preprocess) -> Preprocess:
  """What the files say of preprocessing, else the layout's.

  Hugging Face's preprocessor_config.json, or timm's `pretrained_cfg`.
  """
  said = weights.preprocessor
  if "image_mean" in said:
    share = None
    size, crop = (_side(said.get(key)) for key in ("size", "crop_size"))
    if said.get("do_center_crop") and size and crop:
      share = min(crop / size, 1.0)
    if not said.get("do_normalize", True):
      return Preprocess((0.0,) * 3, (1.0,) * 3, share)
    mean, std = said["image_mean"], said["image_std"]
    return Preprocess(tuple(mean), tuple(std), share)
  said = weights.config.get("pretrained_cfg", {})
  if "mean" in said:
    share = said.get("crop_pct", default.share)
    squash = said.get("crop_mode") == "squash"
    mean, std = said["mean"], said.get("std", default.std)
    return Preprocess(tuple(mean), tuple(std), None if squash else share)
  return default


def _side(size: Any) -> int | None:
  """Of a number, {height, width} or {shortest_edge}."""
  if isinstance(size, Mapping):
    size = size.get("shortest_edge", size.get("height"))
  return size if isinstance(size, int) else None


def unstacked(
  shapes: Mapping[str, Any], read: Callable, start: str, layer: str
) -> tuple[dict[str, Any], Callable]:
  """Arrays that hold all layers, as one array each.

  Args:
    shapes, read: of a checkpoint.
    start: of the names of such arrays.
    layer: what stands there in those of layer `{}`.
  """
  out, where, kept = {}, {}, {}
  for name, x in shapes.items():
    if not name.startswith(start):
      out[name] = x
      continue
    for i in range(x.shape[0]):
      own = layer.format(i) + name.removeprefix(start)
      where[own] = name, i
      out[own] = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)

  def one(name: str) -> np.ndarray:
    if name not in where:
      return read(name)
    whole, i = where[name]
    if whole not in kept:
      kept[whole] = read(whole)
    return kept[whole][i]

  return out, one
