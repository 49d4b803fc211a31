"""What part of a model a nested model is, said by axis names.

    ffn=1/2                     half of the hidden units of every layer
    ffn=1/4x6,1/2x6             a quarter in six layers, half in the next six
    heads=1/2 embed=1/2 ffn=1/2 a narrower model, heads as wide as before
    depth=3/4                   the first layers; layers=3/4: spread evenly
    layers=0-4,7                these layers
    out=64                      the first 64 pooled features (Matryoshka)
    tokens=1/2                  half of the pairs of every Pattention layer
    patch=8                     another patch, 8x4 for rows x columns: not a
                                slice but the kernel resized (FlexiViT)
    full                        the whole model

A fraction is written 1/2, 0.5 or 50%; 1 is the whole, and an integer from 2
on is a size. Lists (ffn, heads) have one entry per layer that is kept.

`resolve` turns a spec into options of the plain family, whose `Model` calls
these `mlp_dim num_heads width depth out_dim`, or `tokens ffn_tokens` for pairs;
nothing else here knows of models.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import flax.linen as nn

from vitscale.core.errors import UserError, nearest
from vitscale.nn.block import per_layer
from vitscale.nn.patch import pair

Part = Fraction | int  # of a whole, or a size
WHOLE = Fraction(1)

# Key of a spec -> option of a family's Model.
OPTIONS: dict[str, str] = {
  "ffn": "mlp_dim",
  "heads": "num_heads",
  "embed": "width",
  "depth": "depth",
  "layers": "depth",
  "out": "out_dim",
  "tokens": "tokens",
  "patch": "patch_size",
}


@dataclasses.dataclass(frozen=True)
class ElasticSpec:
  """A granularity; `parse` makes one, `str` writes it.

  Attributes:
    ffn, heads: part of the hidden units and heads, one for all layers or one
      per kept layer.
    embed: part of the residual width; heads keep their width.
    depth: part of the layers, the first of them.
    layers: instead of `depth`, a fraction spread evenly or layer numbers.
    out: part of the pooled features that the logits see (MRL, 2205.13147).
    tokens: part of the key-value pairs of Pattention (2410.23168), those of the
      channel mixer alike: what growing appends, a prefix leaves out. The
      number under theta's root is the part's own, or the model's
      `scale_tokens`.
    patch: (rows, columns) of a patch in pixels.
  """

  ffn: tuple[Part, ...] = (WHOLE,)
  heads: tuple[Part, ...] = (WHOLE,)
  embed: Part = WHOLE
  depth: Part = WHOLE
  layers: Fraction | tuple[int, ...] = WHOLE
  out: Part = WHOLE
  tokens: Part = WHOLE
  patch: tuple[int, int] | None = None

  def touched(self) -> set[str]:
    """Keys that are not the whole."""
    whole = ElasticSpec()
    names = [field.name for field in dataclasses.fields(self)]
    return {k for k in names if getattr(self, k) != getattr(whole, k)}

  def __str__(self) -> str:
    texts = [
      f"{field.name}={_write(field.name, getattr(self, field.name))}"
      for field in dataclasses.fields(self)
      if field.name in self.touched()
    ]
    return " ".join(texts) or "full"


# ------------------------------------------------------------------- parsing


def parse(text: str) -> ElasticSpec:
  """The spec of a text, see the module; `parse(str(spec)) == spec`.

  Raises:
    UserError: unknown or repeated key, or a value that can't be read.
  """
  found: dict[str, Any] = {}
  items = text.split()
  for item in [] if items == ["full"] else items:
    key, _, value = item.partition("=")
    if key not in OPTIONS:
      raise UserError(f"spec {text!r}: unknown {key!r}{nearest(key, OPTIONS)}")
    if key in found:
      raise UserError(f"spec {text!r} gives {key!r} twice")
    found[key] = _read(key, value)
  if not items:
    raise UserError("empty spec: write for example 'ffn=1/2', or 'full'")
  if "depth" in found and "layers" in found:
    raise UserError(f"spec {text!r} gives both depth and layers: choose one")
  return ElasticSpec(**found)


_ITEM = re.compile(r"(\d+/\d+|\d*\.\d+|\d+%?)(?:x(\d+))?")
_LAYERS = re.compile(r"(\d+)(?:-(\d+))?")


def _read(key: str, text: str) -> Any:
  parts: list[Part] = []
  if key == "patch":
    return _read_patch(text)
  if key == "layers" and not re.fullmatch(r"1|\d+/\d+|\d*\.\d+|\d+%", text):
    return _read_layers(text)
  for item in text.split(","):
    match = _ITEM.fullmatch(item)
    if not match or match[2] == "0":
      raise UserError(
        f"spec {key}={text}: {item!r} is no part of a whole: write 1/2, 0.5,"
        " a size from 2 on, or 1/4x6 for six layers"
      )
    parts += [_part(key, match[1])] * int(match[2] or 1)
  if key in ("ffn", "heads"):
    return tuple(parts)
  if len(parts) > 1:
    raise UserError(f"spec {key}={text}: one value, not one per layer")
  return parts[0]


def _part(key: str, text: str) -> Part:
  try:
    whole = text.isdigit() and int(text) > 1
    percent = text.endswith("%")
    part = Fraction(text[:-1]) / 100 if percent else Fraction(text)
  except ZeroDivisionError:
    part, whole = Fraction(0), False
  if whole:
    return int(text)
  if not 0 < part <= 1:
    raise UserError(f"spec {key}={text}: a fraction is above 0, at most 1")
  return part


def _read_patch(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", text)
  if not match:
    raise UserError(
      f"spec patch={text}: write the pixels of a side, patch=8, or 8x4"
    )
  return int(match[1]), int(match[2] or match[1])


def _read_layers(text: str) -> tuple[int, ...]:
  numbers: list[int] = []
  for item in text.split(","):
    match = _LAYERS.fullmatch(item)
    if not match:
      raise UserError(
        f"spec layers={text}: {item!r} is no layer: write 3/4, or 0-4,7"
      )
    first = int(match[1])
    numbers += range(first, int(match[2] or first) + 1)
  if not numbers or any(a >= b for a, b in itertools.pairwise(numbers)):
    raise UserError(f"spec layers={text}: should rise, each layer once")
  return tuple(numbers)


def _write(key: str, value: Any) -> str:
  if not isinstance(value, tuple):
    return str(value)
  if key == "patch":
    return str(value[0]) if value[0] == value[1] else "x".join(map(str, value))
  if key == "layers":  # a run rises in step with its place: 0-4,7-7
    runs = itertools.groupby(enumerate(value), lambda pair: pair[1] - pair[0])
    ends = [[layer for _, layer in run] for _, run in runs]
    return ",".join(f"{run[0]}-{run[-1]}" for run in ends)
  runs = [(part, len(list(run))) for part, run in itertools.groupby(value)]
  return ",".join(f"{part}x{n}" if n > 1 else str(part) for part, n in runs)


# ----------------------------------------------------------------- resolving


class Kept(tuple[int, ...]):
  """Numbers of the big model's layers that a part keeps.

  Attributes:
    patches: (patch of the big model, of the part) where they differ: what
      `slice.nest` has to resize.
  """

  patches: tuple[Any, Any] | None

  def __new__(cls, layers: Sequence[int], patches: Any = None) -> "Kept":
    made = super().__new__(cls, layers)
    made.patches = patches
    return made


def resolve(
  spec: ElasticSpec, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], Kept]:
  """A spec as options of the plain family.

  Args:
    spec: of the small model.
    kwargs: all options of the big model (`options_of`).

  Returns:
    The options in which the small model differs, ready for its `Model` and
    for a config (layers of unequal size become tuples, and are looped); and
    the numbers of the big model's layers that are kept.

  Raises:
    UserError: an option the family doesn't have, a part that is not whole
      (nearest offered), a size above the model's, or another number of layers.
  """
  for key in spec.touched():
    if kwargs.get(OPTIONS[key], ()) == () or (
      isinstance(kwargs.get("depth"), list | tuple)
    ):
      raise UserError(f"this family has no {OPTIONS[key]!r} to cut ({key}=)")
  depth = kwargs.get("depth", 0)
  layers = _layers(spec, depth)
  new: dict[str, Any] = {"depth": len(layers)} if depth else {}
  for key in ("ffn", "heads"):
    if OPTIONS[key] in kwargs:
      new[OPTIONS[key]] = _sizes(spec, key, kwargs, layers)
  if "width" in kwargs:
    new["width"] = _size(spec.embed, kwargs["width"], "embed")
  if spec.out != WHOLE or kwargs.get("out_dim"):
    known = min(kwargs.get("out_dim") or new["width"], new["width"])
    out = _size(spec.out, known, "out")
    new["out_dim"] = out if out < new["width"] else None
  if "ffn_tokens" in kwargs:
    new["tokens"] = _size(spec.tokens, kwargs["tokens"], "tokens")
    part = Fraction(new["tokens"], kwargs["tokens"])
    new["ffn_tokens"] = _size(part, kwargs["ffn_tokens"], "tokens")
  changes = {k: v for k, v in new.items() if v != kwargs[k]}
  changes |= _head_dim(kwargs, new)
  if any(isinstance(v, tuple) for v in new.values()) and kwargs.get("scan"):
    changes["scan"] = False
  patches = None
  if spec.patch and spec.patch != pair(kwargs["patch_size"]):
    patches = pair(kwargs["patch_size"]), spec.patch
    unit = kwargs.get("position_patch") or kwargs["patch_size"]
    changes |= {"patch_size": spec.patch, "position_patch": unit}
  return changes, Kept(layers, patches)


def small(model: nn.Module, spec: ElasticSpec) -> tuple[nn.Module, Kept]:
  """The plain small model of a spec, and the layers of `model` it keeps."""
  changes, layers = resolve(spec, options_of(model))
  return model.clone(**changes), layers


def options_of(model: nn.Module) -> dict[str, Any]:
  """A model's options by name."""
  fields = [f.name for f in dataclasses.fields(model)]
  return {k: getattr(model, k) for k in fields if k not in ("parent", "name")}


def _layers(spec: ElasticSpec, depth: int) -> tuple[int, ...]:
  if isinstance(spec.layers, tuple):
    if spec.layers[-1] >= depth:
      raise UserError(
        f"spec '{spec}' is deeper than the model: layers are 0 to {depth - 1}"
      )
    return spec.layers
  if spec.layers == WHOLE:
    if isinstance(spec.depth, int) and spec.depth > depth:
      raise UserError(f"spec '{spec}' is deeper than the model of {depth}")
    return tuple(range(_size(spec.depth, depth, "depth") if depth else 0))
  # As DynaBERT keeps them (2004.04037; `kept_layers_index` of its code).
  count = _size(spec.layers, depth, "layers")
  return tuple(math.floor(i / spec.layers) for i in range(count))


def _head_dim(kwargs, new) -> dict[str, int]:
  """Heads stay as wide as they are, where that has to be said."""
  width, heads = kwargs.get("width"), kwargs.get("num_heads")
  if heads is None or width is None or kwargs.get("head_dim") is not None:
    return {}
  wide = width // heads
  if new["width"] // wide == new["num_heads"] and not new["width"] % wide:
    return {}
  if "head_dim" not in kwargs:
    raise UserError(
      f"heads of this family are as wide as width / num_heads, here {wide}:"
      f" {new['num_heads']} heads in a width of {new['width']} would not be;"
      " give heads= and embed= the same part"
    )
  return {"head_dim": wide}


def _sizes(spec, key, kwargs, layers) -> int | tuple[int, ...]:
  """Of all kept layers; one number where they are equal."""
  parts, whole = getattr(spec, key), kwargs[OPTIONS[key]]
  if not layers:
    return _size(parts[0], whole, key)
  if len(parts) not in (1, len(layers)):
    deeper = len(parts) > len(layers)
    raise UserError(
      f"spec '{spec}' {'is deeper than' if deeper else 'leaves out layers of'}"
      f" the model: {key} names {len(parts)} layers, there are {len(layers)}"
    )
  whole = per_layer(whole, kwargs["depth"], OPTIONS[key])
  parts = parts * len(layers) if len(parts) == 1 else parts
  sizes = tuple(_size(p, whole[i], key) for p, i in zip(parts, layers))
  return sizes[0] if len(set(sizes)) == 1 else sizes


def _size(part: Part, whole: int, key: str) -> int:
  if isinstance(part, int):
    if part > whole:
      raise UserError(f"spec {key}={part}: the model has {whole}")
    return part
  exact = part * whole
  if exact.denominator != 1:
    near = sorted({max(math.floor(exact), 1), math.ceil(exact)})
    texts = [f"{Fraction(n, whole)} ({n})" for n in near]
    raise UserError(
      f"spec {key}={part} of {whole} is {float(exact):.4g}, not whole: nearest"
      f" {' or '.join(texts)}"
    )
  return int(exact)
