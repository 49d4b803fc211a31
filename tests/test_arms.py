"""Arms over seeds: pilots, pairs, intervals, verdicts of several parts."""

import numpy as np
import pytest

from vitscale import arms


def run(arm, seed=None, lr=None, loss=None, status="finished", **facts):
  metrics = {} if loss is None else {"eval/val/nll": loss}
  known = {"arm": arm, "seed": seed, "lr": lr, **facts}
  known = {k: v for k, v in known.items() if v is not None}
  return {"status": status, "law_variables": known, "metrics": metrics}


def test_the_best_pilot_of_those_that_are_meant():
  done = {
    "a": run("pilot", lr=1.0, loss=0.5, family="x"),
    "b": run("pilot", lr=2.0, loss=0.4, family="x"),
    "c": run("pilot", lr=3.0, family="x", status="failed"),
    "d": run("pilot", lr=4.0, loss=0.1, family="y"),
    "e": run("S", seed=0, lr=9.0, loss=0.0, family="x"),
  }
  done["nan"] = run("pilot", lr=0.5, loss=float("nan"), family="x")
  done["dead"] = run("pilot", lr=0.7, loss=0.0, family="x", status="failed")
  assert arms.best_rate(done, family="x") == 2.0
  both = ("eval/val/nll", "eval/val/other")
  done["b"]["metrics"]["eval/val/other"] = 0.8
  done["a"]["metrics"]["eval/val/other"] = 0.1
  assert arms.best_rate(done, both, family="x") == 1.0
  assert arms.best_rate(done) == 4.0
  assert arms.best_rate(done, family="z") is None
  assert list(arms.finished(done)) == [("S", 0)]


def test_pairs_are_of_the_seeds_that_both_have():
  assert arms.difference({0: 3.0, 2: 5.0, 1: 1.0}, {2: 1.0, 0: 1.0}) == [2, 4]


def test_intervals_are_students():
  low, high = arms.interval([1.0, 2.0, 3.0])
  assert low == pytest.approx(2 - 4.30265 / np.sqrt(3), abs=1e-4)
  assert high == pytest.approx(2 + 4.30265 / np.sqrt(3), abs=1e-4)
  assert arms.interval([1.0]) is None and arms.interval([]) is None


def test_what_is_said():
  assert arms.said("S:", [1.0, 2.0, 3.0], 1) == "S: 2.0 [-0.5, 4.5]"
  assert arms.said("", [0.5]) == "0.500 of one seed"
  assert arms.said("S:", []) == "S: nothing was measured"


def judged(**parts):
  return arms.judged("c", "t", {k: (v, 0.0) for k, v in parts.items()}).verdict


def test_the_worst_part_decides():
  good, bad, open_ = [1.0, 1.1, 1.2], [-1.0, -1.1, -1.2], [-1.0, 0.0, 1.0]
  assert judged(a=good, b=good) == "supported"
  assert judged(a=good, b=open_) == "inconclusive"
  assert judged(a=open_, b=bad) == "not supported"
  assert judged(a=[5.0]) == judged(a=[]) == "inconclusive"
  below = arms.judged("c", "t", {"": (bad, 0.0)}, direction="below")
  assert below.verdict == "supported" and below.value == pytest.approx(-1.1)


def test_the_spread_of_cells():
  means, lows, highs = arms.spread([[1.0, 2.0, 3.0], [5.0]])
  assert means == [2.0, 5.0]
  assert (lows[0], highs[0]) == arms.interval([1.0, 2.0, 3.0])
  assert lows[1] == highs[1] == 5.0  # one seed has no interval
