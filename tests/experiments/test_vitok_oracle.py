"""vitok_oracle: the README's design, and claims that can be lost."""

from pathlib import Path

import pytest

from vitscale import study as study_lib
from vitscale.bench import build
from vitscale.core.config import load_module
from vitscale.data import fields

FOLDER = Path(__file__).parents[2] / "experiments" / "vitok_oracle"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def run(arm, lr, mse, seed=None, **facts):
  more = {} if seed is None else {"seed": seed}
  return {
    "status": "finished",
    "law_variables": {"arm": arm, "lr": lr, **more, **facts},
    "metrics": {"eval/scored/mse": mse},
  }


def pilots(study, scale):
  """Each cell's second rate is the better one."""
  made = study.SCALES[scale]
  return {
    f"{e}{p}{alone}{lr}": run(
      "pilot", lr, abs(lr - made.rates[-1]), floats=e, patch=p, alone=alone
    )
    for e, p in study.cells(made)
    for alone in (False, True)
    for lr in made.rates
  }


def results(study, share, alone=1.0, seeds=(0, 1, 2), apart=0.0):
  """Runs that lie `share` of the way (of logs) from the bound of the best code
  to that of their patch; controls at `alone` times that of their patch."""
  _, std = fields.statistics()
  found = {}
  for cell in study.cells(study.SCALES["quick"]):
    low, high = study.analysis.bounds(cell)
    for seed in seeds:
      wave = 1 + 0.002 * (seed - 1)
      residual = low * (high / low) ** share * wave
      residual *= 1 + apart * (cell[1] == 8)
      facts = {"floats": cell[0], "patch": cell[1]}
      found[f"w{cell}{seed}"] = run(
        f"whole{cell}", 1e-3, residual * std**2, seed, alone=False, **facts
      )
      found[f"a{cell}{seed}"] = run(
        f"alone{cell}", 1e-3, alone * high * wave * std**2, seed, alone=True,
        **facts,
      )  # fmt: skip
  return found


def answers(study, done):
  found = study.analysis.analyse(done)
  return [verdict.verdict for verdict in found["verdicts"]]


# --------------------------------------------------------------------- design


def test_pilots_come_first_and_choose_each_cells_rate(study):
  first = study.runs("quick", {})
  assert len(first) == 4 * 2 * 2
  assert all(r.config.evals.scored.split == "val" for r in first)
  rest = study.runs("quick", pilots(study, "quick"))[len(first) :]
  assert len(rest) == 4 * 2 * 3
  assert {r.config.optim.lr for r in rest} == {4e-3}
  assert all(r.config.evals.scored.split == "test" for r in rest)
  assert not {r.config.seed for r in first} & {r.config.seed for r in rest}


@pytest.mark.slow
def test_every_cell_has_its_floats(study):
  """As the model will really make them, alone and whole."""
  for e, p in study.cells(study.SCALES["quick"]):
    for alone in (False, True):
      made = study.config(
        e, p, alone=alone, steps=1, lr=1e-3, seed=0, split="test"
      )
      code = int(made.model.bottleneck[6:-1])
      tokens = 1 if alone else (32 // p) ** 2
      assert build(made).facts["tokens_per_example"] == tokens
      assert code * (32 // p) ** 2 == e


# -------------------------------------------------------------------- verdicts


def test_a_tokenizer_with_attention(study):
  assert answers(study, results(study, 0.1)) == ["supported"] * 5


def test_claims_can_be_lost(study):
  no = "not supported"
  assert answers(study, results(study, 1.2))[0] == no  # above its patch
  assert answers(study, results(study, -0.3))[1] == no  # beats the bound
  assert answers(study, results(study, 0.1, alone=0.9))[2] == no
  assert answers(study, results(study, 0.1, apart=0.5))[3] == no
  assert answers(study, results(study, 0.95))[4] == no


def test_one_seed_or_none_decides_nothing(study):
  for done in (results(study, 0.1, seeds=(0,)), {}):
    assert set(answers(study, done)) == {"inconclusive"}


def test_table_and_figure(study):
  found = study.analysis.analyse(results(study, 0.1))
  rows = found["tables"][0].rows
  assert [(row["E"], row["patch"]) for row in rows] == [
    (16, 8), (16, 16), (64, 8), (64, 16),
  ]  # fmt: skip
  assert all(
    row["global PCA"] < row["ViTok"] < row["per-patch PCA"] for row in rows
  )
  (figure,) = found["figures"]
  assert [panel.title for panel in figure.panels] == ["patch 8", "patch 16"]


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study(
    "vitok_oracle", scale="smoke", out=tmp_path / "out"
  )
  assert result["status"] == "finished", result["errors"]
  assert len(result["tables"][0]["rows"]) == 2
