"""Contestant `chinchilla`, the package of that name, in a folder of its own.

Its grid is that of its README with fewer values a side; its objective is set
to Hoffmann's, which it offers but does not use by default.
"""

import functools
import json
import os
import sys
import tempfile
import time

import numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber

RANGES = {"E": (1, 2), "a": (1, 10), "b": (1, 10), "alpha": (0.1, 0.7),
          "beta": (0.1, 0.7)}  # fmt: skip


def main():
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  points = json.loads(sys.stdin.readline())
  for line in sys.stdin:
    side = round(json.loads(line)["size"] ** 0.2)
    with tempfile.TemporaryDirectory() as folder:
      peer = Chinchilla(
        folder,
        param_grid={k: np.linspace(*v, side) for k, v in RANGES.items()},
        loss_fn=functools.partial(log_huber, delta=1e-3),
        log_level=50,
      )
      for n, d, loss in zip(points["N"], points["D"], points["loss"]):
        peer.append(C=6 * n * d, N=n, D=d, loss=loss)
      peer.visualizer.optim = lambda *args, **kwargs: None  # no picture
      start = time.perf_counter()
      peer.fit()
      seconds = time.perf_counter() - start
    params = {k: float(v) for k, v in peer.params.items()}
    answer = {"seconds": seconds, "params": params}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
  main()
