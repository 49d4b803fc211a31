"""Seconds to score mixes with shared layers, and one by one, in one process.

    python experiments/mix_and_match/race.py --layers 12 --images 500

All rising mixes of four levels, random weights, on images of Fashion-MNIST.
One by one is what a family without a stack gets: the whole model with hidden
units masked, compiled once. That side runs every n-th mix and is scaled up.
Compilation is not counted; CPU seconds are printed too, as they say more on a
machine that is busy with something else.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import numpy as np

from vitscale.core import axes
from vitscale.data import pipeline, sources
from vitscale.elastic import score
from vitscale.elastic.mixes import Mix
from vitscale.elastic.space import Space
from vitscale.elastic.trunk import Trunk
from vitscale.models import vit
from vitscale.tasks import classify

LEVELS = [Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1)]


def timed(
  losses: Callable[[Sequence[Mix]], list[float]], mixes: Sequence[Mix]
) -> tuple[list[float], float, float]:
  """Losses, wall and CPU seconds, after everything has compiled."""
  losses(mixes)
  wall, cpu = time.perf_counter(), time.process_time()
  found = losses(mixes)
  return found, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--layers", type=int, default=12)
  parser.add_argument("--width", type=int, default=64)
  parser.add_argument("--images", type=int, default=500)
  parser.add_argument("--every", type=int, default=20, help="n, see above")
  args = parser.parse_args()
  source = sources.make("fashion_mnist", split="val", limit=args.images)
  batches = lambda: pipeline.eval_batches(source, batch_size=args.images)
  example = next(iter(batches()))
  task = classify.Task(source.classes, source.mean, source.std)
  model = vit.Model(
    num_classes=source.classes, width=args.width, depth=args.layers,
    mlp_dim=4 * args.width, num_heads=2, patch_size=7, position="sincos2d",
  )  # fmt: skip
  boxed = jax.eval_shape(
    lambda key: task.init(model, key, example), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (0.1 * rng.standard_normal(x.shape)).astype(np.float32),
    axes.unbox(boxed)["params"],
  )
  nest = score.Nest(task, model, params, axes.names_of(boxed)["params"])
  space = Space(model, [f"ffn={part}" for part in LEVELS], lambda _: 0)
  mixes = space.shape("increasing")
  trunk = Trunk(task, model, params, nest.names, LEVELS, example, score.sums)

  shared, wall, cpu = timed(
    lambda mixes: score.shared_losses(trunk, mixes, batches), mixes
  )
  some = list(itertools.islice(mixes, 0, None, args.every))
  alone, wall_one, cpu_one = timed(
    score.masked_losses(nest, space, batches), some
  )
  more = len(mixes) / len(some)
  worst = np.abs(np.asarray(shared[:: args.every]) - alone).max()
  saving = score.saving(mixes)
  print(f"{len(mixes)} mixes, {args.images} images, width {args.width}")
  print(f"layers: {saving['layers_run']} shared, {saving['layers']} one by one")
  print(f"shared:     {wall:7.1f} s, {cpu:7.1f} s of CPU")
  print(f"one by one: {wall_one * more:7.1f} s, {cpu_one * more:7.1f} s of CPU")
  print(f"ratio: {wall_one * more / wall:.1f}, CPU {cpu_one * more / cpu:.1f}")
  print(f"largest difference of a loss: {worst:.1e}")


if __name__ == "__main__":
  main()
