"""Batches are a pure function of the step, for any process count."""

import itertools
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.data import pipeline, transforms
from vitscale.data import source as source_lib

AUGMENT = transforms.parse("random_shift(1)|flip_lr|noise(5)")
N = 50


@pytest.fixture(scope="module")
def source():
  """Images that tell their own index."""
  image = np.zeros((N, 6, 6, 1), np.uint8)
  image[:, 2:4, 2:4] = np.arange(N)[:, None, None, None]
  label = np.arange(N) % 5
  return source_lib.in_memory(image, label, "abcde", (0.5,), (0.5,), "test")


def _take(iterator, n):
  with iterator:
    return list(itertools.islice(iterator, n))


def _train(source, n=6, **kw):
  kw = {"batch_size": 16, "seed": 0, "transform": AUGMENT} | kw
  return _take(pipeline.train_batches(source, **kw), n)


def _equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key])


def _joined(parts):
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


@pytest.mark.parametrize("processes", [2, 4])
def test_same_bytes_for_any_process_count(source, processes):
  whole = _train(source)
  shares = [
    _train(source, process_index=h, process_count=processes)
    for h in range(processes)
  ]
  assert len(shares[0][0]["label"]) == 16 // processes
  for k, batch in enumerate(whole):
    _equal(batch, _joined([share[k] for share in shares]))


@pytest.mark.parametrize("start", [1, 3, 1000])
def test_restart_at_any_step(source, start):
  tail = _train(source, 2, start=start)
  if start < 4:
    whole = _train(source)[start : start + 2]
  else:
    whole = _train(source, 3, start=start - 1)[1:]
  for a, b in zip(tail, whole):
    _equal(a, b)


@pytest.mark.parametrize("batch_size", [16, 7, 50, 120])
def test_epochs_are_complete_and_shuffled_apart(source, batch_size):
  count = -(-3 * N // batch_size)
  batches = _train(source, count, batch_size=batch_size, transform=None)
  ids = np.concatenate([b["image"][:, 2, 2, 0] for b in batches])
  labels = np.concatenate([b["label"] for b in batches])
  np.testing.assert_array_equal(labels, ids % 5)
  epochs = ids[: 3 * N].reshape(3, N)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(N), (3, 1)))
  assert not (epochs[0] == epochs[1]).all()
  assert (epochs[0] == np.arange(N)).mean() < 0.2


def test_seed_and_epoch_change_order_and_augmentation(source):
  a, b = (_train(source, 1, seed=s, transform=None)[0] for s in (0, 1))
  assert not np.array_equal(a["label"], b["label"])
  one = source_lib.subset(source, np.array([30]))
  images = _train(one, 1, batch_size=8)[0]["image"]  # 8 epochs of one image
  assert len(np.unique(images, axis=0)) == 8


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("n", [1, 16, 50])
def test_eval_is_exact_at_uneven_ends(source, n, processes):
  part = source_lib.subset(source, np.arange(n))
  shares = []
  for h in range(processes):
    batches = pipeline.eval_batches(
      part, batch_size=16, process_index=h, process_count=processes
    )
    shares.append(_take(batches, None))
  assert {len(share) for share in shares} == {-(-n // 16)}
  seen = []
  for k in range(len(shares[0])):
    batch = _joined([share[k] for share in shares])
    assert batch["image"].shape == (16, 6, 6, 1)
    assert batch["weight"].dtype == np.float32
    assert batch["label"].dtype == np.int32
    seen += list(batch["image"][batch["weight"] == 1][:, 2, 2, 0])
  assert seen == list(range(n))


def test_closing_ends_the_threads(source):
  grain_threads = lambda: {
    t for t in threading.enumerate() if "grain" in t.name
  }
  before = grain_threads()
  iterator = pipeline.train_batches(source, batch_size=4, seed=0)
  next(iterator)
  assert grain_threads() - before
  iterator.close()
  iterator.close()  # twice is fine
  for _ in range(100):
    if not grain_threads() - before:
      break
    time.sleep(0.02)
  assert not grain_threads() - before
  with pytest.raises(ValueError):
    next(iterator)


def test_bad_input(source):
  with pytest.raises(UserError, match="multiple of the 4 processes"):
    pipeline.train_batches(source, batch_size=6, seed=0, process_count=4)
  with pytest.raises(UserError, match="batch size 0"):
    pipeline.eval_batches(source, batch_size=0)
  with pytest.raises(UserError, match="workers"):
    pipeline.train_batches(source, batch_size=4, seed=0, workers=-1)


def test_errors_and_lists_come_through_the_threads():
  shapes = [(4, 4, 1), (4, 4, 1), (5, 4, 1)]
  images = lambda ids: [np.zeros(shapes[i], np.uint8) for i in ids]
  source = source_lib.Source(
    images, np.zeros(3, np.int32), ("a",), None, (0.5,), (0.5,), "x"
  )
  with pytest.raises(UserError, match=r"don't fit one batch.*resize"):
    _train(source, 1, batch_size=3, transform=None)
  same = source_lib.subset(source, np.array([0, 1]))
  batch = _train(same, 1, batch_size=2, transform=None)[0]
  assert batch["image"].shape == (2, 4, 4, 1)


WORKERS = """
import itertools, multiprocessing
import numpy as np
from vitscale.core.errors import UserError
from vitscale.data import fashion, pipeline, sources, transforms
from vitscale.data import source as source_lib

def no_backend(batch, rng):
  from jax._src import xla_bridge
  assert not xla_bridge.backends_are_initialized(), "worker started a backend"
  return transforms.parse("random_shift(1)|flip_lr")(batch, rng)

def main():
  source = sources.make("fashion_mnist", size=8, limit=100)
  out = []
  for workers in (0, 2):
    with pipeline.train_batches(
      source, batch_size=32, seed=0, transform=no_backend, workers=workers,
      start=3,
    ) as batches:
      out.append([b["image"] for b in itertools.islice(batches, 5)])
  np.testing.assert_array_equal(out[0], out[1])
  crop = transforms.parse("central_crop(99)")
  try:
    with pipeline.eval_batches(
      source, batch_size=32, transform=crop, workers=1
    ) as batches:
      next(batches)
  except UserError as e:
    assert "too small" in str(e), e
  else:
    raise AssertionError("the worker's error got lost")
  assert not multiprocessing.active_children(), "workers outlive close()"
  print("same")

if __name__ == "__main__":
  main()
"""


def test_worker_processes_give_the_same_bytes_without_jax(tmp_path):
  script = tmp_path / "script.py"
  script.write_text(textwrap.dedent(WORKERS))
  root = Path(pipeline.__file__).parents[2]
  done = subprocess.run(
    [sys.executable, script],
    capture_output=True,
    text=True,
    timeout=120,
    env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
  )
  assert done.stdout.strip() == "same", done.stderr[-2000:]
