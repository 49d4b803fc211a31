"""Three ledgers: what a nested training cost, beside separate ones."""

import json

import pytest

from vitscale.core.errors import UserError
from vitscale.elastic import ledger

RUN = {
  "step": 50, "train_examples": 300,
  "law_variables": {"flops": 2e9, "examples": 400},
}  # fmt: skip


def test_a_run_counts_what_it_saw():
  assert ledger.cost(RUN) == ledger.Cost(2e9, 50, 400, 300)
  short = {**RUN, "law_variables": {"flops": 1e9, "examples": 200}}
  assert ledger.cost(short) == ledger.Cost(1e9, 50, 200, 200)


def test_a_result_of_a_study_is_read_in_its_workdir(tmp_path):
  (tmp_path / "run.json").write_text(json.dumps(RUN))
  assert ledger.cost({"workdir": str(tmp_path)}) == ledger.cost(RUN)
  with pytest.raises(UserError, match="no 'law_variables' in it"):
    ledger.cost({"workdir": str(tmp_path / "gone")})


def test_ledgers_by_hand():
  arms = {
    "S": ledger.Cost(1.0, 10, 100, 100), "XL": ledger.Cost(3.0, 10, 100, 100),
    "nested": ledger.Cost(8.0, 40, 400, 300),
  }  # fmt: skip
  rows = {row["arm"]: row for row in ledger.compare(arms, ("S", "XL"), "XL")}
  assert rows["nested"] == {
    "arm": "nested", "of one whole": 8 / 3, "of all separate": 2.0,
    "updates": 40, "images": 400, "unique": 300,
  }  # fmt: skip
  assert rows["XL"]["of one whole"] == 1.0
  assert rows["S"]["of all separate"] == 0.25
  said = ledger.text({**rows["nested"], "models": 2})
  assert "2.67 of the whole" in said and "2 of all 2 sizes" in said
  assert "free" not in said
  with pytest.raises(UserError, match="no run of 'M'"):
    ledger.compare(arms, ("S", "M", "XL"), "XL")
