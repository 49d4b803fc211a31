"""The sweep language: order, counts, and what it refuses."""

import pytest
from ml_collections import ConfigDict

from vitscale import sweep
from vitscale.core.errors import UserError


def toy() -> ConfigDict:
  return ConfigDict(
    {
      "seed": 0,
      "model": {
        "width": 64,
        "patch_size": 4,
        "head_dim": None,
        "shape": (2, 2),
      },
      "optim": {"lr": 1e-3, "name": "adamw"},
    }
  ).lock()


def test_product_varies_the_last_axis_fastest():
  points = sweep.product({"model.width": [64, 128]}, seed=range(3))
  assert len(points) == 6
  assert points[0] == {"model.width": 64, "seed": 0}
  assert points[1] == {"model.width": 64, "seed": 1}
  assert points[3] == {"model.width": 128, "seed": 0}


def test_sweeps_multiply_with_sweeps():
  pairs = sweep.zip_({"model.patch_size": [2, 4], "optim.lr": [1e-3, 3e-3]})
  points = sweep.product(pairs, seed=[7, 8])
  assert points[-1] == {"model.patch_size": 4, "optim.lr": 3e-3, "seed": 8}
  assert len(points) == 4


def test_zip_takes_sweeps_too():
  grid = sweep.product(a=[1, 2], b=[3])
  assert sweep.zip_(grid, c=[5, 6])[1] == {"a": 2, "b": 3, "c": 6}


def test_chain_drops_repeats_and_copies():
  first, second = sweep.product(a=[1, 2]), sweep.product(a=[2, 3])
  points = sweep.chain(first, second)
  assert [p["a"] for p in points] == [1, 2, 3]
  points[0]["a"] = 9
  assert first[0]["a"] == 1


def test_subsample_is_a_function_of_the_seed():
  grid = sweep.product(a=range(100))
  drawn = sweep.subsample(grid, 10, seed=1)
  assert drawn == sweep.subsample(grid, 10, seed=1)
  assert drawn != sweep.subsample(grid, 10, seed=2)
  assert [p["a"] for p in drawn] == sorted({p["a"] for p in drawn})
  assert sweep.subsample(grid, 100, seed=3) == grid


def test_apply_copies_widens_and_locks():
  config = toy()
  new = sweep.apply(config, {"optim.lr": 1, "model.head_dim": 16})
  assert new.optim.lr == 1.0
  assert isinstance(new.optim.lr, float)
  assert new.model.head_dim == 16
  assert config.optim.lr == 1e-3
  assert config.model.head_dim is None
  with pytest.raises(AttributeError, match="width"):
    new.model.widht = 3


@pytest.mark.parametrize(
  "overrides, said",
  [
    ({"model.widht": 3}, "did you mean 'model.width'"),
    ({"width": 3}, "did you mean 'model.width'"),
    ({"model": 3}, "is a group"),
    ({"seed.x": 3}, "unknown config key 'seed.x'"),
    ({"model.width": 1.5}, "is float, should be int"),
    ({"model.width": "64"}, "is str, should be int"),
    ({"optim.name": 3}, "is int, should be str"),
    ({"model.shape": 3}, "is int, should be tuple"),
  ],
)
def test_apply_refuses(overrides, said):
  with pytest.raises(UserError, match=said):
    sweep.apply(toy(), overrides)


@pytest.mark.parametrize(
  "make, said",
  [
    (lambda: sweep.product(a=[]), "'a' has no values"),
    (lambda: sweep.product(a="abc"), "'a' is no list"),
    (lambda: sweep.product(a=3), "'a' is no list"),
    (lambda: sweep.product({"a": [1]}, a=[2]), "sets 'a' twice"),
    (lambda: sweep.zip_(a=[1, 2], b=[1]), "a has 2, b has 1"),
    (lambda: sweep.subsample([{"a": 1}], 2, seed=0), "2 points from a sweep"),
  ],
)
def test_refuses(make, said):
  with pytest.raises(UserError, match=said):
    make()
