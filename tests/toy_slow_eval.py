"""An evaluation that can be caught in the act: EVALUATING names its marker."""

import os
import time
from pathlib import Path

from vitscale.evals import classify

make = classify.make


def evaluate(sums, variables, batches):
  marker = os.environ.get("EVALUATING")
  if marker:
    Path(marker).touch()
    time.sleep(0.3)
  scores = classify.evaluate(sums, variables, batches)
  if marker:
    Path(marker).unlink(missing_ok=True)
  return scores
