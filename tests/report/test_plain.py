"""Strict JSON, readable numbers, aligned tables."""

import json
import math
import pathlib

import numpy as np
import pytest

from vitscale import laws
from vitscale.report import plain


def test_to_json():
  value = {
    1: math.nan,
    "a": np.float32(0.5),
    "b": np.array([1.0, np.inf]),
    "c": (np.int64(3), True, np.bool_(False), None),
    "d": pathlib.Path("x/y"),
    "e": laws.Verdict("c", "supported", "t", "m", value=math.nan),
  }
  out = plain.to_json(value)
  assert out["1"] is None
  assert out["a"] == 0.5
  assert out["b"] == [1.0, None]
  assert out["c"] == [3, True, False, None]
  assert out["d"] == "x/y"
  assert out["e"]["value"] is None
  assert json.loads(plain.dumps(value)) == out
  with pytest.raises(TypeError, match="function"):
    plain.to_json(lambda: 0)


@pytest.mark.parametrize(
  "value, text",
  [
    (0.25432, "0.2543"),
    (0.0325, "0.03250"),
    (12.3456, "12.35"),
    (999.96, "1000.0"),
    (1.5e9, "1.500e+09"),
    (0.0, "0"),
    (16, "16"),
    (5717416, "5,717,416"),
    (math.nan, "–"),
    (None, "–"),
    (-math.inf, "-∞"),
    (True, "yes"),
    ("B/16", "B/16"),
  ],
)
def test_number(value, text):
  assert plain.number(value) == text


def test_table():
  rows = [{"p": 16, "loss": 0.4512, "note": "早い"}, {"p": 1, "loss": None}]
  lines = plain.table(rows).splitlines()
  assert lines[0] == " p    loss  note"
  assert lines[2] == "16  0.4512  早い"
  assert lines[3] == " 1       –  –"
  assert plain.table([[1, 2]], ["a", "b"]).splitlines()[2] == "1  2"
  assert "a" in plain.table([], ["a"])
  with pytest.raises(ValueError, match="row 1 has 1 cells"):
    plain.table([[1, 2], [1]], ["a", "b"])
