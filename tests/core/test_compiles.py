import json
import threading

import jax
import jax.numpy as jnp
import pytest

from tests import toys
from vitscale.bench import build
from vitscale.core import compiles, draws
from vitscale.train import train


def test_names_of_what_is_compiled_inside():
  double = jax.jit(lambda x: x * 2)
  inputs = [jnp.zeros(n) for n in (3, 4)]
  with compiles.watched() as names:
    double(inputs[0])
  assert len(names) == 1 and "lambda" in names[0]
  double(inputs[1])  # nobody asks
  with compiles.watched() as names:
    double(inputs[0]), double(inputs[1])
  assert names == []


def test_other_threads_are_not_heard():
  x = jnp.zeros(5)
  work = threading.Thread(target=lambda: jax.jit(lambda y: y - 3)(x))
  with compiles.watched() as names:
    work.start()
    work.join()
  assert names == []


def test_who_watches_around_hears_it_too():
  f, x = jax.jit(lambda x: x * 5), jnp.zeros(6)
  with compiles.watched() as around, compiles.watched() as inside:
    f(x)
  assert len(inside) == 1 and around == inside


def test_one_listener_a_process():
  f = jax.jit(lambda x: x + 7)
  for _ in range(3):
    with compiles.watched():
      pass
  x = jnp.zeros(6)
  with compiles.watched() as names:
    f(x)
  assert len(names) == 1


# Patches of a 60 px image, 10 grids from 1 x 1 to 20 x 20.
GRIDS = (60, 30, 20, 15, 12, 10, 6, 5, 4, 3)


def test_ten_grids_are_ten_steps(tmp_path):
  """FlexiViT, patches from large to small: one compile a grid; FLOPs are of
  the grids drawn."""
  halves = tuple((float(p > 10), float(p <= 10)) for p in GRIDS)
  early, late = zip(*halves)
  made = toys.config(
    total_steps=96, batch_size=2, data__size=60, data__n=8,
    model__variant="mu/12", model__depth=1, model__width=8, model__mlp_dim=8,
    log__every_steps=48, checkpoint__every_steps=96,
    evals={}, ema=0.0,
  )  # fmt: skip
  made.draws = {
    "patch_size": {
      "values": GRIDS,
      "stages": ((0.0, early), (0.5, early), (0.5, late), (1.0, late)),
    }
  }
  with compiles.watched() as names:
    result = train(made, tmp_path)
  assert names.count("jit(step)") == len(GRIDS), names
  bench = build(made)
  cost = {dict(key)["patch_size"]: value for key, value in bench.flops.items()}
  assert set(cost) == set(GRIDS)
  drawn = [draws.at(bench.draws, 0, k)["patch_size"] for k in range(96)]
  assert set(drawn) == set(GRIDS)
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  spent = [json.loads(row)["flops"] for row in rows]
  assert spent == [
    pytest.approx(2 * sum(cost[p] for p in drawn[:k])) for k in (48, 96)
  ]
  assert spent[0] < spent[1] / 3  # the mean over draws would say half
  run = json.loads((tmp_path / "run.json").read_text())
  assert run["recompiles"] == 0 and run["law_variables"]["flops"] == spent[1]
  assert result["metrics"]["flops"] == spent[1]
