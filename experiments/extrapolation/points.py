"""The curves: the benchmark of 92, and language-model curves as controls."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vitscale.laws import ingest
from vitscale.laws.extrapolate import Curve, curves

NEEDS = 6  # different x to fit: the parameters of one break
MOST = 60  # points of a control curve that are fitted
COLUMNS = {
  "x": "Seen Examples",
  "y": "Loss",
  "group": ("Domain", "Task", "Model"),
  "holdout": "Training",
}


def benchmark(files: Sequence[Path], few: int | None) -> list[Curve]:
  """The curves of the benchmark's files, named "domain / task / model".

  `few`: only so many of each domain.
  """
  found = curves(ingest.read_files(files), **COLUMNS)
  if few is None:
    return found
  kept: dict[str, list[Curve]] = {}
  for curve in found:
    kept.setdefault(domain(curve.name), []).append(curve)
  return [c for some in kept.values() for c in some[:few]]


def domain(name: str) -> str:
  """IC, NMT, LM or BB."""
  return name.partition(" / ")[0]


def family(name: str) -> str:
  """Curves that share models and data: all shots of a data set and model."""
  kind, task, model = name.split(" / ")
  if kind == "IC":
    task = re.sub(r"_\d+$", "", task)
  if kind == "BB":
    task = task.partition(",")[0]
  return f"{kind} / {task} / {model}"


def control(
  file: Path, part: int, of: int = 3
) -> tuple[list[Curve], dict[str, str]]:
  """Every `of`-th curve by sorted name, from number `part`.

  The first half of a curve's points is fitted, thinned to 60; the second half
  is predicted.

  Returns:
    The curves, and why others were left out: too few points, or a curve that
    is one of the benchmark's.
  """
  with np.load(file) as stored:
    arrays = {name: stored[name] for name in sorted(stored.files)}
  found, left = [], {}
  for name in list(arrays)[part::of]:
    if name.startswith("lambda-"):
      left[name] = "a curve of the benchmark"
      continue
    x, y = arrays[name]
    good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    order = np.argsort(x[good], kind="stable")
    x, y = x[good][order], y[good][order]
    half = len(x) // 2
    thin = np.unique(np.linspace(0, half - 1, min(half, MOST)).round())
    near = thin.astype(int)
    near_x, first = np.unique(x[near], return_index=True)
    if len(near_x) < NEEDS:
      left[name] = f"{len(near_x)} different x to fit, {NEEDS} are needed"
      continue
    found.append(Curve(name, near_x, y[near][first], x[half:], y[half:]))
  return found, left


def unseen(file: Path) -> tuple[list[Curve], dict[str, str]]:
  """Error of six tasks over the training of six OPT models; halves, as above.

  Returns:
    The curves "model / task", and why others were left out.
  """
  table = ingest.read_files([file])
  found, left = [], {}
  for task in (c for c in table if c.startswith("bigbench__")):
    for model in dict.fromkeys(table["model_name"].tolist()):
      name = f"{model} / {task.removeprefix('bigbench__')}"
      mine = table["model_name"] == model
      x, y = table["tokens"][mine], 1 - table[task][mine] / 100
      good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
      order = np.argsort(x[good], kind="stable")
      x, y = x[good][order], y[good][order]
      half = len(x) // 2
      if half < NEEDS:
        left[name] = f"{half} points to fit, {NEEDS} are needed"
        continue
      found.append(Curve(name, x[:half], y[:half], x[half:], y[half:]))
  return found, left


def by_domain(names: Sequence[str]) -> Mapping[str, list[int]]:
  """Which of the curves each column of the tables is over."""
  kinds = [domain(n) for n in names]
  parts = {k: [i for i, d in enumerate(kinds) if d == k] for k in ORDER}
  language = [i for i, d in enumerate(kinds) if d != "IC"]
  parts = {k: v for k, v in parts.items() if v}
  return {**parts, "language": language, "all": list(range(len(names)))}


ORDER = ("IC", "NMT", "LM", "BB")
