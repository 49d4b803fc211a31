"""Resolution x patch x shape, judged on losses that follow the law."""

from pathlib import Path

import numpy as np
import pytest

from vitscale.core.config import load_module

FOLDER = Path(__file__).parents[2] / "experiments" / "patchify"
frontier = load_module(FOLDER / "frontier.py")
CELLS = frontier.SCALES["frontier-cpu"].cells


def done(loss, noise=0.003, seeds=(0, 1, 2)):
  """Finished runs of every cell with loss(cell, N)."""
  rng, found = np.random.default_rng(0), {}
  for cell in CELLS:
    n = 12 * cell.depth * cell.width**2
    for seed in seeds:
      name = f"run-{cell.name}-s{seed}"
      found[name] = {
        "name": name, "status": "finished",
        "law_variables": {
          "arm": "run", "cell": cell.name, "q": cell.q, "seed": seed,
          "size": cell.size, "tokens": cell.tokens, "width": cell.width,
          "depth": cell.depth, "lr": 1e-3, "params_non_embedding": n,
        },
        "metrics": {
          "eval/test/nll": loss(cell, n) * np.exp(noise * rng.normal()),
          "flops": 6.0 * n * cell.tokens * 1e5,
        },
      }  # fmt: skip
  return found


def true(cell, n):
  """The law, but for one kind of image."""
  return exact(cell, n) * (0.9 if (cell.size, cell.patch) == (24, 6) else 1.0)


def exact(cell, n):
  return 0.1 + 0.03 * 28 / cell.size + 20 / n**0.6 + 0.02 * cell.q**0.7


def answers(loss, **how):
  report = frontier.analyse(done(loss, **how), "frontier")
  return [v.verdict for v in report["verdicts"]], report


def test_losses_of_the_law():
  found, report = answers(exact)
  assert found == ["supported"] * 4
  assert report["laws"][0]["params"]["beta"] == pytest.approx(0.7, abs=0.1)


def test_a_kind_of_image_that_breaks_the_law():
  rows = frontier.points(done(true))
  assert frontier.law(rows, frontier.joint(rows)).verdict == "not supported"


def test_large_patches_that_win_everywhere():
  """A frontier of one patch has no slope; 24 px have no advantage here."""
  rows = frontier.points(done(lambda cell, n: 0.2 + 20 / n**0.6 + 0.3 / cell.q))
  assert frontier.moves(rows).verdict == "not supported"
  assert frontier.information(rows).verdict == "inconclusive"


def test_a_frontier_is_what_nobody_beats_for_less():
  rows = frontier.points(done(exact))
  edge = frontier.frontier(rows)
  losses, flops = ([r[k] for r in edge] for k in ("loss", "flops"))
  assert losses == sorted(losses, reverse=True) and flops == sorted(flops)
  means = {}
  for r in rows:
    means.setdefault((r["cell"], r["flops"]), []).append(r["loss"])
  for (_, spent), each in means.items():
    best = min(loss for loss, c in zip(losses, flops) if c <= spent)
    assert best <= np.mean(each) + 1e-12


def test_runs():
  scale = frontier.SCALES["frontier-cpu"]
  pilots = frontier.runs("frontier-cpu", {})
  assert len(pilots) == 3 * len(CELLS)
  assert {run.config.total_steps for run in pilots} == {scale.steps // 3}
  assert len({run.name for run in pilots}) == len(pilots)
