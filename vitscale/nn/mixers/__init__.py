"""Token mixers by name, in the place where softmax attention stands.

    model.mixer = "softmax"            # vitscale.nn.attention, the default
    model.mixer = "performer(64)"      # Core(64) of nn/mixers/performer.py

A block is token mixing, then channel mixing; everything around the mixer stays
(the template of 2302.06218). A module here has either a `Core`, what happens
between the projections to q, k, v and the one back,

    Core(options...)(q, k, v, grid=, lengths=, segment_ids=) -> (b, n, h, hd)

or a `Mixer` that stands for `Attention` as a whole: same first arguments, same
three methods. A core says which of lengths and segment_ids it can't do.
"""

import dataclasses
import functools
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from vitscale import plugin
from vitscale.core import call
from vitscale.core.errors import UserError, nearest
from vitscale.nn.attention import Attention

FLAX = ("parent", "name")  # fields of every module


def names() -> tuple[str, ...]:
  """Every mixer that `parse` knows."""
  return ("softmax", *(m.name for m in pkgutil.iter_modules(__path__)))


@functools.cache
def parse(text: str) -> Callable[..., nn.Module]:
  """The factory of a mixer, called as `Attention` is, from `NAME(options)`.

  Raises:
    UserError: unknown mixer or option.
  """
  what = f"model.mixer {text!r}"
  name, args, kwargs = call.read(text, what)
  if name not in names():
    raise UserError(f"{what}: no mixer {name!r}{nearest(name, names())}")
  if name == "softmax":
    _options(what, Attention, args, kwargs, known={})
    return Attention
  module = plugin.module("nn.mixers", name)
  if hasattr(module, "Core"):
    core = _options(what, module.Core, args, kwargs)
    return functools.partial(
      Attention, core=functools.partial(module.Core, **core)
    )
  whole = {f.name for f in dataclasses.fields(Attention)}
  known = {
    k: v for k, v in _fields(module.Mixer).items() if k not in whole
  }  # fmt: skip
  options = _options(what, module.Mixer, args, kwargs, known)
  return functools.partial(module.Mixer, **options)


def refuse(mixer: str, **given: Any) -> None:
  """Raises UserError for the first argument that is not None."""
  for name, value in given.items():
    if value is not None:
      raise UserError(
        f"mixer {mixer!r} can't tell images of one row apart ({name}):"
        " take 'softmax', or one image a row"
      )


def _fields(made: type) -> dict[str, Any]:
  """Name -> type of the options of a module, in order."""
  fields = dataclasses.fields(made)
  return {f.name: f.type for f in fields if f.name not in FLAX}


def _options(
  what: str,
  made: type,
  args: list,
  kwargs: Mapping[str, Any],
  known: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  known = _fields(made) if known is None else known
  if len(args) > len(known):
    takes = f"takes {', '.join(known)}" if known else "takes no options"
    raise UserError(f"{what}: {takes}, got {len(args)} values")
  given = dict(zip(known, args)) | dict(kwargs)
  for name, value in given.items():
    if name not in known:
      raise UserError(f"{what}: no option {name!r}{nearest(name, known)}")
    if known[name] in (int, float) and not _number(value, known[name]):
      raise UserError(
        f"{what}: {name} should be {known[name].__name__}, got {value!r}"
      )
  if twice := set(kwargs) & set(list(known)[: len(args)]):
    raise UserError(f"{what}: {sorted(twice)[0]!r} is given twice")
  return given


def _number(value: Any, kind: type) -> bool:
  return type(value) is int or (kind is float and type(value) is float)
