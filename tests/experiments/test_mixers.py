"""mixers: the README's design, and claims that can be lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.models import vit
from vitscale.nn import mixers

FOLDER = Path(__file__).parents[2] / "experiments" / "mixers"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


# --------------------------------------------------------------------- design


def test_every_mixer_is_trained_timed_and_in_the_readme(study):
  text = (FOLDER / "README.md").read_text()
  known = set(mixers.names())
  assert set(study.TRAINED) == known
  assert set(study.TIMED) == {*known, "softmax, chunked"}
  timed = [text for text, _ in study.TIMED.values()]
  for name in (*study.TRAINED.values(), *timed):
    mixers.parse(name)
    assert name.partition("(")[0] in text
    assert "(" not in name or f"`{name}`" in text or "the same" in text
  for scale in study.SCALES:
    assert f"| `{scale}` |" in text


def test_rates_of_quick_are_committed_for_each_of_its_cells(study):
  scale = study.SCALES["quick"]
  rates = json.loads((FOLDER / "rates.json").read_text())["quick"]
  assert set(rates) == {study.name(cell) for cell in study.cells(scale)}
  runs = study.runs("quick", {})
  assert len(runs) == 2 * 8 * 3
  for run in runs:
    v = run.law_variables
    assert v["tokens"] == 36 and run.config.optim.lr == rates[v["arm"]]
    model = dict(run.config.model)
    model.pop("family")
    size, patch = run.config.data["size"], model["patch_size"]
    made = {**vit.VARIANTS[model.pop("variant")], **model, "num_classes": 4}
    assert vit.flops_per_image(made, (size, size, 1)) > 0
    assert (size // patch) ** 2 == v["tokens"]


def pilots(study, scale, best):
  """Results of the pilots of a scale; cell -> its best rate."""
  done = {}
  for run in study.runs(scale, {}):
    v = dict(run.law_variables)
    cell = (v["data"], 2 * round(v["tokens"] ** 0.5), v["mixer"])
    loss = 0.5 if best(cell) == v["lr"] else 1.0
    done[run.name] = {
      "law_variables": v, "status": "finished",
      "metrics": {"eval/val/nll": loss},
    }  # fmt: skip
  return done


def test_pilots_choose_for_every_cell_on_images_held_out(study):
  best = lambda cell: study.RATES[1 + (cell[1] // 4 + len(cell[2])) % 2]
  first = study.runs("cpu", {})
  assert len(first) == 2 * 3 * 8 * 4
  assert all(list(run.config.evals) == ["val"] for run in first)
  assert {run.config.seed for run in first} == {study.PILOT}
  rest = study.runs("cpu", pilots(study, "cpu", best))[len(first) :]
  assert len(rest) == 2 * 3 * 8 * 3
  for run in rest:
    v = run.law_variables
    cell = (v["data"], run.config.data["size"], v["mixer"])
    assert run.config.optim.lr == best(cell) and v["seed"] < study.PILOT
    assert list(run.config.evals) == ["test"]


def test_tune_ends_in_the_table_of_rates(study):
  done = pilots(study, "tune", lambda cell: 3e-3)
  found = study.analyse(done, "tune")
  rates = found["files"]["rates.json"]["quick"]
  assert set(rates.values()) == {3e-3} and len(rates) == 16
  assert not any(
    row["at an end of the grid"] for row in found["tables"][0].rows
  )
  assert study.runs("tune", done) == study.runs("tune", {})  # nothing else


def test_a_grid_grows_where_the_best_is_at_its_end(study):
  first = {run.name for run in study.runs("tune", {})}
  done = pilots(study, "tune", lambda cell: study.RATES[0])
  more = [r for r in study.runs("tune", done) if r.name not in first]
  assert {r.config.optim.lr for r in more} == {study.RATES[0] / 2}
  assert len(more) == 16


# ------------------------------------------------------------------ judgement


def runs(accuracy, *, noise=0.001, lengths=(36, 144), seeds=3):
  """Results with `accuracy(mixer, tokens)`, seeds apart by noise."""
  done = {}
  names = ("softmax", "window", "linear")
  for n in lengths:
    for mixer in names:
      for seed in range(seeds):
        value = accuracy(mixer, n) + noise * (seed - 1)
        done[f"{mixer}-{n}-{seed}"] = {
          "status": "finished",
          "law_variables": {
            "data": "strokes", "tokens": n, "mixer": mixer, "seed": seed,
            "arm": f"strokes-{mixer}-n{n}", "lr": 3e-3, "params": 10,
          },
          "metrics": {"eval/test/accuracy": value, "flops": 1e12},
        }  # fmt: skip
  return done


def clock(exponents, *, scatter=0.02, memory=None):
  """What clock.py would print for costs of `c N^a`."""
  rng, cells = np.random.default_rng(0), []
  for name, a in exponents.items():
    for n in (256, 1024, 2304, 4096):
      m = (memory or exponents)[name]
      wobble = np.exp(scatter * rng.standard_normal(5))
      cells.append(
        {
          "mixer": name, "tokens": n, "seconds": list(1e-6 * n**a * wobble),
          "bytes": int(1e3 * n**m), "flops": int(1e3 * n**a), "matmul": 1,
        }
      )  # fmt: skip
  return {"cells": cells, "device": "made up", "jax": "0"}


FAIR = {"softmax": 1.9, "softmax, chunked": 1.85, "linear": 1.0, "scan": 1.05}


def answers(study, done, seen):
  found = study.analysis.analyse(done, seen, "quick")
  return [v.verdict for v in found["verdicts"]], found


def test_claims_can_be_won(study):
  even = lambda mixer, n: 0.9 - 0.01 * (mixer == "linear")
  got, found = answers(study, runs(even), clock(FAIR))
  assert got == ["supported"] * 7
  accuracy, costs = found["tables"]
  assert len(accuracy.rows) == 6 and accuracy.rows[0]["seeds"] == 3
  row = {row["mixer"]: row for row in costs.rows}["linear"]
  assert row["flops: a"].startswith("1.00")
  energy = found["sections"][0].tables[0].rows
  assert [row["share"] for row in energy] == sorted(
    (row["share"] for row in energy), reverse=True
  )


def test_claims_can_be_lost(study):
  def worse(mixer, n):  # a mixer beats softmax, another fades
    more = 0.05 if mixer == "window" else 0.0
    return 0.8 + more - 0.1 * (mixer == "linear") * (n == 144)

  slow = {**FAIR, "scan": 2.2, "softmax": 1.2, "softmax, chunked": 1.2}
  got, _ = answers(study, runs(worse), clock(slow))
  assert got == ["not supported"] * 7


def test_noise_decides_nothing(study):
  near = lambda mixer, n: 0.9 - 0.005 * (mixer == "linear")
  done = runs(near, lengths=(36,))
  for i, run in enumerate(done.values()):
    run["metrics"]["eval/test/accuracy"] += 0.05 * (i * 7 % 5)
  edge = {"softmax": 1.5, "softmax, chunked": 1.5, "linear": 1.2, "scan": 1.19}
  seen = clock(edge, scatter=0.3, memory={**FAIR})
  got, _ = answers(study, done, seen)
  # One length: no claim about longer ones. Memory is not noisy.
  assert got[0] == "inconclusive" and len(got) == 6
  assert got[1:3] == ["supported"] * 2 and got[3:5] == ["inconclusive"] * 2


def test_one_seed_proves_nothing(study):
  got, found = answers(
    study, runs(lambda m, n: 0.9, seeds=1), clock(FAIR)
  )  # fmt: skip
  assert got[:2] == ["inconclusive"] * 2
  assert np.isnan(found["tables"][0].rows[0]["sd"])


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study("mixers", scale="smoke", out=tmp_path / "out")
  assert result["status"] == "finished", result["errors"]
  assert len(result["runs"]) == 3
  costs = result["tables"][1]["rows"]
  assert costs[0]["mixer"] == "softmax, chunked"
