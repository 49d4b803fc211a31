"""Published laws: their numbers against each other and against the points."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from vitscale import laws
from vitscale.core.errors import UserError
from vitscale.laws.published import (
  HENIGHAN_IMAGE,
  PUBLISHED,
  VITOK_SIZES,
  VITOK_SWEEP,
  vitok_line,
)

VITOK = Path(__file__).parents[2] / "experiments" / "vitok" / "expected.json"


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_law_is_whole(name):
  one = laws.published(name)
  assert set(one.params) == set(one.law.names)
  assert set(one.units) == set(one.law.variables)
  assert one.y and "arXiv" in one.source
  (x,) = one.law.variables
  low, high = one(**{x: np.array([1e3, 1e6])})
  falls = not name.endswith(("N(C)", "PSNR(E)", "SSIM(E)", "rIS(E)"))
  assert math.isfinite(high) and (low > high) == falls


def test_laws_as_they_are_printed():
  at = lambda name, **x: float(laws.published(f"henighan/{name}")(**x))
  # Where N or C is the printed scale, 1 nat is reducible.
  assert at("image-8/L(N)", N=80) == pytest.approx(4.12)
  assert at("image-16/L(C)", C=1.6e-8) == pytest.approx(3.64)
  assert at("vq-32/L(N)", N=1.9e4 * 2) == pytest.approx(3.07 + 2**-0.14)
  assert at("language/L(N)", N=1.47e14) == pytest.approx(1)
  assert at("math/N(C)", C=2.3e-12) == pytest.approx(1)
  assert at("math/N(C)", C=2.3e-10) == pytest.approx(100**0.69)
  var = lambda name, **x: float(laws.published(f"var/{name}")(**x))
  assert var("last/L(N)", N=0.5) == pytest.approx(1)
  assert var("all/L(N)", N=4 * 0.4) == pytest.approx(4**-0.20)
  assert var("last/L(C)", C=2 / 2.2e-5) == pytest.approx(2**-0.13)
  assert var("all/error(N)", N=1 / 650) == pytest.approx(1)


@pytest.mark.parametrize("name", HENIGHAN_IMAGE)
def test_tables_1_and_3_agree(name):
  """An image's nats are its tokens times a token's."""
  tokens, floor, _, alpha = HENIGHAN_IMAGE[name]
  token = laws.published(f"henighan/{name}/L(C)").params
  image = laws.published(f"henighan/{name}/image(C)").params
  assert image["Linf"] == floor and image["alpha"] == alpha == token["alpha"]
  assert tokens * token["Linf"] == pytest.approx(floor, rel=0.003)
  # The scales too, but for 8 x 8; a factor of ten in C is 10^alpha here.
  off = 10**alpha if name == "image-8" else 1.0
  assert tokens * token["A"] == pytest.approx(off * image["A"], rel=0.02)


def test_optima_grow_as_printed():
  exponents = [
    one.params["a"] for name, one in PUBLISHED.items() if "N(C)" in name
  ]
  assert len(exponents) == 10
  assert (min(exponents), max(exponents)) == (0.64, 0.75)


@pytest.mark.parametrize(
  "column, start, slope, r2",
  [
    ("rFID", 17.3, -1.38, 0.945), ("PSNR", -0.57, 2.30, 0.923),
    ("SSIM", None, 0.0637, 0.984), ("rIS", None, 28.7, 0.907),
  ],
)  # fmt: skip
def test_lines_through_vitoks_points(column, start, slope, r2):
  found = vitok_line(column)
  assert found[1] == pytest.approx(slope, rel=0.003)
  assert found[2] == pytest.approx(r2, abs=0.001)
  if start is not None:
    assert found[0] == pytest.approx(start, abs=0.02)
  law, e = laws.published(f"vitok/{column}(E)"), 2.0**12
  want = found[0] + 12 * found[1]
  want = 2**want if column == "rFID" else want
  assert float(law(E=e)) == pytest.approx(want)


def test_vitoks_points():
  for row in VITOK_SWEEP:
    assert row["E"] == (256 // row["patch"]) ** 2 * row["code"]
  # The study of ViTok compares itself with the same ones.
  sweep = json.loads(VITOK.read_text())["sweep"]
  for row, theirs in zip(VITOK_SWEEP, sweep["rows"], strict=True):
    assert [
      row[name] for name in ("E", "patch", "code", "rFID", "SSIM", "PSNR")
    ] == theirs
  sizes = {(r["encoder"], r["decoder"]): r for r in VITOK_SIZES}
  assert len(sizes) == 7
  # One cell is in both: patch 16, 16 floats a token, S-B.
  both = next(r for r in VITOK_SWEEP if (r["E"], r["patch"]) == (4096, 16))
  assert sizes["S", "B"]["rFID"] == pytest.approx(both["rFID"], rel=0.005)


def test_an_unknown_law_is_one_line():
  with pytest.raises(UserError, match=r"'henighan/image-8/L\(N\)'") as error:
    laws.published("henighan/image8/L(N)")
  assert "\n" not in str(error.value)
