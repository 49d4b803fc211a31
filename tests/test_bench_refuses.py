"""What a config can't have together is refused before anything is written."""

import pytest

from tests import toys
from vitscale import bench
from vitscale.core.errors import UserError

VIEWS = {"image": "flip_lr", "image@4": "resize(4)"}
PACK = {"length": 8, "patch_size": 4, "segments": 2}


def made(**changes):
  """The toy config; whole groups are replaced."""
  config = toys.config()
  for key, value in changes.items():
    *parents, leaf = key.split("__")
    node = config
    for name in parents:
      node = node[name]
    with config.ignore_type():
      node[leaf] = value
  return config


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"train__transform": VIEWS}, "'image@4' that task 'classify' never sees"),
    ({"train__transform": VIEWS, "pack": PACK}, "rows are packed of one"),
    ({"pack": PACK, "accumulate": 2}, "packed rows weigh them"),
    (
      {"task": {"name": "masked"}, "accumulate": 2},
      "task 'masked' weigh them",
    ),
    (
      {"model__mixer": "linear()", "model__attention": "chunked"},
      "back ends are of softmax",
    ),
    (
      {"evals__val__draw": {"patch_size": 5}},
      r"evals\.val\.draw: patch 5 does not divide",
    ),
    ({"evals__val__draw": {"train": True}}, "no such argument"),
    ({"draws": {"train": {"values": (True,)}}}, "no such argument"),
    (
      {"task": {"name": "masked"}, "evals__val__draw": {"patch_size": 2}},
      "task 'masked' is scored as it stands",
    ),
  ],
)
def test_refused(changes, message):
  with pytest.raises(UserError, match=message):
    bench.build(made(**changes))


def test_what_is_fine_is_built():
  bench.build(made(evals__val__draw={"patch_size": 2}))
  bench.build(
    made(train__transform=VIEWS, task={
      "name": "multiscale", "of": {"name": "classify"}
    })
  )  # fmt: skip
