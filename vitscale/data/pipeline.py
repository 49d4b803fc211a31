"""Batches as a pure function of the step; grain only runs them ahead.

Sample j of the endless stream is sample `order(j // n)[j % n]` of the source,
where `order(e)` is the shuffle of epoch e; batch k holds samples kB to
kB + B - 1. So the step is the whole state of the pipeline: a restart at any
step, on any number of processes or workers, sees the same bytes. Process h
of H makes rows hB/H to (h+1)B/H of each batch, and only those.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from vitscale.core.errors import UserError
from vitscale.data import pack
from vitscale.data.random import Rng, permutation
from vitscale.data.source import Source

Batch = dict[str, np.ndarray]
Transform = Callable[[dict[str, Any], Rng], dict[str, Any]]
_FOREVER = 2**40  # steps


class Batches(Iterator[Batch]):
  """An iterator over batches; closing it ends its threads and processes."""

  def __init__(self, dataset: grain.IterDataset):
    self._iterator = iter(dataset)

  def __next__(self) -> Batch:
    return next(self._iterator)

  def close(self) -> None:
    self._iterator.close()

  def __enter__(self) -> "Batches":
    return self

  def __exit__(self, *_) -> None:
    self.close()


def train_batches(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  transform: Transform | None = None,
  start: int = 0,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  plan: pack.Plan | None = None,
) -> Batches:
  """Endless shuffled batches from step `start` on; every epoch is complete.

  Args:
    source: where samples come from.
    batch_size: of the global batch, over all processes.
    seed: of the order and of the augmentation.
    transform: `transforms.parse(...)`; must make all images one shape. Views
      are further keys of a batch.
    start: number of the first batch.
    workers: processes that load; 0 loads in threads of this one. They are
      spawned, so a script needs the usual `if __name__ == "__main__":`.
    process_index, process_count: of the distributed job.
    plan: packs images into rows; the transform must keep their sizes.

  Returns:
    iterator of `image` uint8 (B/H, h, w, c), of videos (B/H, t, h, w, c), and
    `label` int32 (B/H,); of what data/pack.py says with a plan, the batch being
    of B rows.
  """
  rows = _rows(batch_size, process_index, process_count)
  if not len(source):
    raise UserError("the data source is empty")
  load = functools.partial(
    _train_batch if plan is None else functools.partial(_packed_batch, plan),
    source, transform, seed, batch_size, rows,
  )  # fmt: skip
  return _run(load, start, _FOREVER, source, workers)


def eval_batches(
  source: Source,
  *,
  batch_size: int,
  transform: Transform | None = None,
  workers: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  plan: pack.Plan | None = None,
) -> Batches:
  """Every sample once, in order; the last batch is filled up.

  As `train_batches`, with `weight` float32 (B/H,), or (B/H, S) with a plan: 1
  for a sample, 0 for filling. All processes get equally many batches of equal
  size.
  """
  rows = _rows(batch_size, process_index, process_count)
  one, count = _eval_batch, len(source)
  if plan is not None:
    one, count = functools.partial(_packed_eval_batch, plan), plan.rows
  load = functools.partial(one, source, transform, batch_size, rows)
  return _run(load, 0, -(-count // batch_size), source, workers)


def _rows(batch_size: int, index: int, count: int) -> slice:
  if batch_size < 1 or batch_size % count:
    raise UserError(
      f"batch size {batch_size} must be a positive multiple of the "
      f"{count} processes"
    )
  share = batch_size // count
  return slice(index * share, (index + 1) * share)


def _run(load, start: int, stop: int, source: Source, workers: int) -> Batches:
  if workers < 0:
    raise UserError(f"workers must be 0 or more, got {workers}")
  # Arrays in memory take one thread well under a millisecond a batch; files
  # wait for the disk and decode outside the interpreter lock.
  threads = 1 if source.shape else min(16, os.cpu_count() or 1)
  read = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  dataset = grain.MapDataset.range(start, stop).map(load).to_iter_dataset(read)
  if workers:
    # Grain's workers read absl flags, which only absl programs parse.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.mp_prefetch(
      grain.MultiprocessingOptions(workers, per_worker_buffer_size=2)
    )
  return Batches(dataset)


def _train_batch(source, transform, seed, batch_size, rows, k: int) -> Batch:
  position = np.arange(k * batch_size + rows.start, k * batch_size + rows.stop)
  epochs, offset = np.divmod(position, len(source))
  ids = np.empty_like(offset)
  for epoch in range(epochs[0], epochs[-1] + 1):
    here = epochs == epoch
    ids[here] = permutation(seed, epoch, len(source))[offset[here]]
  return _load(source, transform, Rng(seed, epochs, ids), ids)


def _packed_batch(
  plan, source, transform, seed, batch_size, rows, k: int
) -> Batch:
  numbers = np.arange(k * batch_size + rows.start, k * batch_size + rows.stop)
  table, epochs = pack.train_rows(plan, seed, numbers)
  return pack.load(source, plan, transform, seed, epochs, table)


def _packed_eval_batch(
  plan, source, transform, batch_size, rows, k: int
) -> Batch:
  numbers = np.arange(k * batch_size + rows.start, k * batch_size + rows.stop)
  table = pack.epoch(plan, 0, None)[np.minimum(numbers, plan.rows - 1)]
  table = np.where((numbers < plan.rows)[:, None], table, -1)
  epochs = np.zeros(len(numbers), np.int64)
  return pack.load(source, plan, transform, 0, epochs, table)


def _eval_batch(source, transform, batch_size, rows, k: int) -> Batch:
  ids = np.arange(k * batch_size + rows.start, k * batch_size + rows.stop)
  weight = (ids < len(source)).astype(np.float32)
  ids = np.minimum(ids, len(source) - 1)
  return _load(source, transform, Rng(0, 0, ids), ids) | {"weight": weight}


def _load(source, transform, rng: Rng, ids: np.ndarray) -> Batch:
  # A transform that begins with a resize decodes one image after the other.
  files = getattr(transform, "takes_files", False)
  batch = source.read(ids, files=files)
  if transform is not None:
    batch = transform(batch, rng)
  lists = {name: x for name, x in batch.items() if isinstance(x, list)}
  for name, images in lists.items():
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
      raise UserError(
        f"{name}: {shapes[0]} and {shapes[-1]} don't fit one batch: end the"
        " transform in resize(224), central_crop(224), random_frames(16) or the"
        " like"
      )
    batch = batch | {name: np.stack(images)}
  return batch
