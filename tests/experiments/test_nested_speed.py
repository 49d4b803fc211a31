"""nested_speed: claims that can be lost, and the clock that really runs."""

import math
from pathlib import Path

import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "nested_speed"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def found(joint=1.0, sampled=1.0, flops=2.65, noise=0.01):
  parts = {"S": 0.45, "M": 0.52, "L": 0.68, "XL": 1.0}
  rounds = [1 - noise, 1.0, 1 + noise]
  seconds = {"joint": [joint * 2.65 * r for r in rounds]}
  for size, part in parts.items():
    for kind, factor in (("plain", 1.0), ("sampled", sampled)):
      seconds[f"{kind} {size}"] = [part + 0.1] * 3
      seconds[f"{kind} {size}, gradient"] = [factor * part * r for r in rounds]
  seconds |= {f"plain {size}": [part] * 3 for size, part in parts.items()}
  return {"seconds": seconds, "flops": {"joint": flops, "plain XL": 1.0}}


def answers(study, **changes):
  return [v.verdict for v in study.verdicts(found(**changes))]


def test_claims_can_be_won_and_lost(study):
  assert answers(study) == ["supported"] * 3
  lost = answers(study, joint=1.3, sampled=1.3, flops=4.0)
  assert lost == ["not supported"] * 3
  assert answers(study, joint=1.1, noise=0.1)[0] == "inconclusive"


def test_the_table_names_the_optimizers_share(study):
  row = study.rows(found())[0]
  assert row["sampled optimizer, share"] == round(0.1 / 0.55, 3)
  assert row["plain, ms"] == 450.0


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study(
    "nested_speed", scale="smoke", out=tmp_path / "out"
  )
  assert result["status"] == "finished", result["errors"]
  table = result["tables"][0]["rows"]
  assert [row["size"] for row in table] == ["S", "M", "L", "XL"]
  assert all(math.isfinite(row["sampled, ms"]) for row in table)
