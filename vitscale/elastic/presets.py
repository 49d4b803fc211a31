"""Granularities that papers nest, by name."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.elastic.spec import parse


def texts(given: str | Sequence[str]) -> tuple[str, ...]:
  """Spec texts as `str(spec)` writes them, of a preset's name or of texts."""
  named = preset(given) if isinstance(given, str) else given
  return tuple(str(parse(text)) for text in named)


def preset(text: str) -> tuple[str, ...]:
  """The granularities that a paper nests, smallest first.

  Args:
    text: a key of `PRESETS`, with a number of its own behind a colon:
      `hydravit:6` for models of 6 heads, `scala:7` for 7 widths, `ofa:24` for
      24 layers.

  Raises:
    UserError: unknown name, or a number that makes no sense.
  """
  name, colon, number = text.partition(":")
  if name not in PRESETS:
    raise UserError(f"elastic preset {name!r}{nearest(name, PRESETS)}")
  make, default, least = PRESETS[name]
  if colon and (not number.isdigit() or default is None):
    raise UserError(f"elastic preset {text!r}: write for example 'scala:7'")
  count = int(number) if colon else default
  if count is not None and count < least:
    raise UserError(f"elastic preset {text!r}: {count} is below {least}")
  return tuple(str(parse(one)) for one in make(count))


def _matvit(_: None) -> list[str]:
  """MatFormer, 2310.07707 section 3.1: S, M, L, XL of the hidden units."""
  return [f"ffn={part}" for part in ("1/8", "1/4", "1/2", "1")]


def _hydravit(heads: int) -> list[str]:
  """HydraViT, 2409.17978: k heads of the largest, width and FFN with them.

  Published with 3 to 12 of 12 heads (DeiT-Ti to DeiT-B).
  """
  return [_all(Fraction(k, heads)) for k in range(-(-heads // 4), heads + 1)]


def _scala(count: int) -> list[str]:
  """Scala (NeurIPS 2024): widths r in [1/4, 1], `count` evenly spaced.

  Every width goes with r (ViT-B at r = 0.5 is ViT-S), heads included.
  """
  step = Fraction(3, 4 * (count - 1))
  return [_all(Fraction(1, 4) + k * step) for k in range(count)]


def _all(part: Fraction) -> str:
  return f"heads={part} embed={part} ffn={part}"


def _dynabert(_: None) -> list[str]:
  """DynaBERT, 2004.04037 section 3: 4 widths (heads and FFN) x 3 depths."""
  return [
    f"heads={width} ffn={width} layers={depth}"
    for depth in ("1/2", "3/4", "1")
    for width in ("1/4", "1/2", "3/4", "1")
  ]


def _ofa(layers: int) -> list[str]:
  """Each layer's FFN drawn by itself, as MatFormer's table 14 calls OFA.

  OFA (1908.09791) draws anew in every step; here 14 draws that were made once
  stand beside the smallest and the largest, so that compiles are bounded.
  """
  levels, rng = ("1/8", "1/4", "1/2", "1"), np.random.default_rng(0)
  drawn = rng.integers(4, size=(14, layers))
  pool = {",".join(levels[i] for i in row) for row in drawn}
  return ["ffn=1/8", *sorted(f"ffn={one}" for one in pool), "ffn=1"]


Make = Callable[[Any], list[str]]

# Name -> (granularities of a number, its default, its least value).
PRESETS: dict[str, tuple[Make, int | None, int]] = {
  "matvit": (_matvit, None, 0),
  "hydravit": (_hydravit, 12, 1),
  "scala": (_scala, 4, 2),
  "dynabert": (_dynabert, None, 0),
  "ofa": (_ofa, 12, 1),
}
