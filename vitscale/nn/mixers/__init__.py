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

import functools
import pkgutil
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from vitscale import plugin
from vitscale.core import call
from vitscale.core.errors import UserError, nearest
from vitscale.nn.attention import Attention


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
    call.options({}, args, kwargs, what=what)
    return Attention
  module = plugin.module("nn.mixers", name)
  if hasattr(module, "Core"):
    core = call.options(call.fields(module.Core), args, kwargs, what=what)
    return functools.partial(
      Attention, core=functools.partial(module.Core, **core)
    )
  whole, known = call.fields(Attention), call.fields(module.Mixer)
  known = {k: v for k, v in known.items() if k not in whole}
  options = call.options(known, args, kwargs, what=what)
  return functools.partial(module.Mixer, **options)


def refuse(mixer: str, **given: Any) -> None:
  """Raises UserError for the first argument that is not None."""
  for name, value in given.items():
    if value is not None:
      raise UserError(
        f"mixer {mixer!r} can't tell images of one row apart ({name}):"
        " take 'softmax', or one image a row"
      )
