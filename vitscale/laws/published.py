"""Published laws of generators and tokenizers, with their printed numbers.

    law = published("henighan/image-8/L(N)")
    law(N=1e6)                     # nats a token
    [one for one in PUBLISHED if one.startswith("var/")]

Curves to lay over one's own points, never to fit to: they are of other data,
codes and sizes. Henighan et al. 2020 (arXiv 2010.14701, tables 1 and 3), VAR
(2404.02905, section 5.2), ViTok (2501.09755, section 3.1). `VITOK_SWEEP` and
`VITOK_SIZES` are points of ViTok's figures, read off their vector graphics.

Doubts. Henighan's table 3 is table 1 times the tokens of an image to .3 % in
its floors, and in its scales but for 8 x 8, which are a factor of ten apart
(1.9e4 would agree). VAR prints no irreducible term, so its laws end at 0, and
in the units it names they give .7 to 2 nats, low for 4096 codes: take them for
exponents.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws import expression
from vitscale.laws.forms import Law
from vitscale.laws.single import henighan, power


@dataclasses.dataclass(frozen=True)
class Published:
  """A law with the numbers its authors print.

  Attributes:
    law: the form.
    params: its numbers.
    y: what it gives, with the unit.
    units: of each variable.
    source: paper and table.
  """

  law: Law
  params: Mapping[str, float]
  y: str
  units: Mapping[str, str]
  source: str

  def __call__(self, **x: float | np.ndarray) -> np.ndarray:
    """The law at its variables, in `units`; see `Law.__call__`."""
    return self.law(self.params, **x)


def published(name: str) -> Published:
  """A published law.

  Raises:
    UserError: no such law (nearest offered).
  """
  if name not in PUBLISHED:
    raise UserError(f"no published law {name!r}{nearest(name, PUBLISHED)}")
  return PUBLISHED[name]


def fell(variable: str, scale: float, exponent: float, floor: float = 0.0):
  """(law, params) of floor + (scale / variable)^exponent."""
  params = {"Linf": floor, "A": scale**exponent, "alpha": exponent}
  return henighan(variable), params


def grew(variable: str, scale: float, exponent: float):
  """(law, params) of (scale variable)^exponent, the exponent of any sign."""
  return power(variable), {"c": scale**exponent, "a": exponent}


# ------------------------------------------------------------------ Henighan

# Table 1: floor, scale and exponent of L(N) and of L(C); scale and exponent of
# N(C). N without embeddings, C in PF-days. Text has no L(N) floor.
HENIGHAN = {
  "language": ((0, 1.47e14, 0.070), (0, 3.47e8, 0.048), (3.3e-13, 0.73)),
  "image-8": ((3.12, 80, 0.24), (3.13, 1.8e-8, 0.19), (5.3e-14, 0.64)),
  "image-16": ((2.64, 280, 0.22), (2.64, 1.6e-8, 0.16), (4.8e-12, 0.75)),
  "image-32": ((2.20, 63, 0.13), (2.21, 3.6e-9, 0.10), (1.6e-13, 0.65)),
  "vq-16": ((3.99, 2.7e4, 0.13), (4.09, 6.1e-7, 0.11), (6.2e-14, 0.64)),
  "vq-32": ((3.07, 1.9e4, 0.14), (3.17, 2.6e-6, 0.12), (9.4e-13, 0.70)),
  "text-to-image": ((2.0, 5.1e3, 0.16), (1.93, 1.5e-6, 0.15), (9.4e-13, 0.70)),
  "image-to-text": ((2.0, 5.5e3, 0.15), (1.97, 1.5e-6, 0.16), (3.3e-12, 0.72)),
  "video-vq": ((1.01, 3.7e4, 0.24), (0.95, 2.2e-5, 0.14), (1.13e-12, 0.71)),
  "math": ((0.28, 1.1e4, 0.16), (0.14, 1.4e-5, 0.17), (2.3e-12, 0.69)),
}
# Of the image tokens above; of the text tokens: scale and exponent of L(N).
HENIGHAN_TEXT = {
  "text-to-image": (5.6e8, 0.037), "image-to-text": (7.0e8, 0.039),
}  # fmt: skip
# Table 3, a whole image: tokens, irreducible nats, scale and exponent in C.
HENIGHAN_IMAGE = {
  "image-8": (3 * 8**2, 602, 1.9e3, 0.19),
  "image-16": (3 * 16**2, 2026, 1.7e10, 0.16),
  "image-32": (3 * 32**2, 6806, 2.7e26, 0.10),
  "vq-16": (16**2, 1047, 4.7e15, 0.11),
  "vq-32": (32**2, 3246, 3.1e19, 0.12),
}
_N, _C = {"N": "parameters without embeddings"}, {"C": "PF-days"}


def _henighan() -> dict[str, Published]:
  paper, found = "Henighan et al. 2020, arXiv 2010.14701, table ", {}
  for name, (of_n, of_c, best) in HENIGHAN.items():
    where, token = f"henighan/{name}", "nats a token"
    for x, units, (floor, scale, alpha) in (("N", _N, of_n), ("C", _C, of_c)):
      found[f"{where}/L({x})"] = Published(
        *fell(x, scale, alpha, floor), token, units, f"{paper}1"
      )
    scale, exponent = best
    found[f"{where}/N(C)"] = Published(
      *grew("C", 1 / scale, exponent), _N["N"], _C, f"{paper}1"
    )
  for name, (scale, alpha) in HENIGHAN_TEXT.items():
    found[f"henighan/{name}-words/L(N)"] = Published(
      *fell("N", scale, alpha), "nats a text token", _N, f"{paper}1"
    )
  for name, (_, floor, scale, alpha) in HENIGHAN_IMAGE.items():
    found[f"henighan/{name}/image(C)"] = Published(
      *fell("C", scale, alpha, floor), "nats an image", _C, f"{paper}3"
    )
  return found


# ----------------------------------------------------------------------- VAR

# (scale x)^exponent: N in thousand millions, C in PFLOPs; of the last scale and
# of all of them. As in the text: the figure has the two the other way round.
VAR = {
  "last/L": ((2.0, -0.23), (2.2e-5, -0.13)),
  "all/L": ((2.5, -0.20), (1.5e-5, -0.16)),
  "last/error": ((490, -0.016), (0.081, -0.0067)),
  "all/error": ((650, -0.010), (0.044, -0.011)),
}


def _var() -> dict[str, Published]:
  units = {"N": {"N": "1e9 parameters"}, "C": {"C": "PFLOPs of training"}}
  found = {}
  for name, pair in VAR.items():
    y = "share of tokens wrong" if "error" in name else "nats a token"
    for x, (scale, exponent) in zip("NC", pair):
      found[f"var/{name}({x})"] = Published(
        *grew(x, scale, exponent), y, units[x],
        "Tian et al. 2024, arXiv 2404.02905, section 5.2",
      )  # fmt: skip
  return found


# --------------------------------------------------------------------- ViTok

_SWEPT = ("E", "patch", "code", "rFID", "rIS", "SSIM", "PSNR")
# S-B, stage 1, ImageNet at 256 px; E = (256 / patch)^2 code.
VITOK_SWEEP: tuple[dict[str, float], ...] = tuple(
  dict(zip(_SWEPT, row))
  for row in (
    (256, 32, 4, 44.8, 27, 0.516, 20.1),
    (512, 32, 8, 24.9, 54, 0.572, 21.3),
    (1024, 16, 4, 9.3, 103, 0.647, 22.8),
    (1024, 32, 16, 11.5, 99, 0.633, 22.6),
    (2048, 16, 8, 4.13, 154, 0.715, 24.3),
    (2048, 32, 32, 5.76, 138, 0.692, 23.9),
    (4096, 8, 4, 1.83, 188, 0.798, 26.2),
    (4096, 16, 16, 1.58, 193, 0.790, 26.1),
    (4096, 32, 64, 2.41, 177, 0.761, 25.4),
    (8192, 8, 8, 0.875, 214, 0.863, 28.3),
    (8192, 16, 32, 0.876, 212, 0.856, 28.1),
    (16384, 8, 16, 0.455, 225, 0.916, 31.0),
    (16384, 16, 64, 0.528, 225, 0.910, 30.5),
    (32768, 8, 32, 0.079, 235, 0.963, 35.1),
    (65536, 8, 64, 0.009, 237, 0.986, 39.9),
  )
)
_SIZED = ("encoder", "decoder", "rFID", "PSNR", "SSIM", "rIS")
# Patch 16, 16 floats a token; one seed.
VITOK_SIZES: tuple[dict[str, float | str], ...] = tuple(
  dict(zip(_SIZED, row))
  for row in (
    ("S", "S", 1.762, 25.88, 0.783, 189.7),
    ("B", "S", 1.817, 25.93, 0.784, 187.9),
    ("S", "B", 1.584, 26.12, 0.790, 193.5),
    ("B", "B", 1.552, 26.26, 0.796, 192.7),
    ("S", "L", 1.360, 26.47, 0.799, 199.8),
    ("B", "L", 1.565, 26.34, 0.796, 192.7),
    ("L", "L", 1.545, 26.32, 0.795, 192.6),
  )
)


def vitok_line(column: str) -> tuple[float, float, float]:
  """Least squares of a column of `VITOK_SWEEP` on log2 E.

  Args:
    column: "PSNR", "SSIM", "rIS", or "rFID", whose log2 is taken.

  Returns:
    Value at E = 1, change per doubling of E, R^2.
  """
  x = np.log2([row["E"] for row in VITOK_SWEEP])
  y = np.array([row[column] for row in VITOK_SWEEP], float)
  y = np.log2(y) if column == "rFID" else y
  slope, start = np.polyfit(x, y, 1)
  rest = y - start - slope * x
  return float(start), float(slope), float(1 - rest.var() / y.var())


def _vitok() -> dict[str, Published]:
  source = (
    "our least squares on points of Hansen-Estruch et al. 2025, arXiv"
    " 2501.09755, section 3.1"
  )
  units, found = {"E": "floats of a latent, 256 px"}, {}
  start, slope, _ = vitok_line("rFID")
  found["vitok/rFID(E)"] = Published(
    power("E"), {"c": 2**start, "a": slope}, "rFID", units, source
  )
  free = {"a": (-math.inf, math.inf), "b": (-math.inf, math.inf)}
  line = expression.law("a + b * log(E)", ("E",), free, "line in ln E")
  for column, unit in (("PSNR", " dB"), ("SSIM", ""), ("rIS", "")):
    start, slope, _ = vitok_line(column)
    params = {"a": start, "b": slope / math.log(2)}
    params |= dict(line.pinned)
    found[f"vitok/{column}(E)"] = Published(
      line, params, f"{column}{unit}", units, source
    )
  return found


PUBLISHED: dict[str, Published] = {**_henighan(), **_var(), **_vitok()}
