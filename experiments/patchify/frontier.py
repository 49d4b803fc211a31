"""Resolution x patch x size: one law for all, and the best cell of a budget.

    vitscale study patchify --scale frontier        # two cores

The claims are 9 to 12 of the README. A cell is a resolution, a patch, a shape
(width, depth); q, the patch in pixels of the 28 px original, is what a token
sees, and s the pixels of the original in a side of one that it is shown.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vitscale import arms, laws
from vitscale.laws import Verdict, expression
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table
from vitscale.study import Run

ORIGINAL = 28  # pixels a side
LOSS = "eval/test/nll"
PILOT = 1000  # seeds of pilots, disjoint from every study's
FORM = "E + A/N^alpha + c*q^beta + d*s"
BOUNDS = {"alpha": (0.05, 2.0), "beta": (0.05, 3.0)}
WIDE = 1.5  # a forecast is worth judging up to this width
SLOPE = -0.05  # of ln q; along a frontier of one patch it is 0 but for rounding

Results = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
  """One model on one kind of image."""

  size: int
  patch: int
  width: int
  depth: int

  @property
  def name(self) -> str:
    return f"{self.size}px-p{self.patch}-w{self.width}-d{self.depth}"

  @property
  def q(self) -> float:
    """Side of a patch in pixels of the original."""
    return ORIGINAL * self.patch / self.size

  @property
  def tokens(self) -> int:
    return (self.size // self.patch) ** 2


@dataclasses.dataclass(frozen=True)
class Scale:
  """Cells, steps, seeds and the rates that pilots try."""

  cells: tuple[Cell, ...]
  steps: int
  seeds: tuple[int, ...]
  rates: tuple[float, ...]
  batch_size: int = 64


def cells(grids, shapes) -> tuple[Cell, ...]:
  """Every shape on every (resolution, patches)."""
  return tuple(
    Cell(size, patch, width, depth)
    for size, patches in grids.items()
    for patch in patches
    for width, depth in shapes
  )


# The same patches as a share of the image, at two resolutions; the last of 12
# px and the last of 24 px have different numbers of pixels in equal tokens.
GRIDS = {12: (12, 6, 3, 2), 24: (12, 6, 4)}
SHAPES = ((16, 2), (32, 2), (64, 2), (32, 4))
SCALES = {
  "frontier-smoke": Scale(
    cells({12: (12, 6, 3)}, ((16, 1), (32, 1))), 20, (0,), (6e-3,)
  ),
  "frontier": Scale(
    cells({12: (12, 6, 3), 24: (12, 6, 4)}, SHAPES[:3]), 800, (0, 1, 2),
    (4e-3, 8e-3),
  ),
  "frontier-cpu": Scale(
    cells(GRIDS, SHAPES), 3000, (0, 1, 2), (3e-3, 6e-3, 1.2e-2)
  ),
}  # fmt: skip


def config(
  scale: Scale, cell: Cell, *, lr: float, seed: int, steps: int, split: str
) -> ConfigDict:
  """One run, scored on `split` at its end."""
  return ConfigDict(
    {
      "seed": seed,
      "batch_size": scale.batch_size,
      "total_steps": steps,
      "data": {"source": "fashion_mnist", "size": cell.size},
      "train": {"split": "train", "transform": "flip_lr"},
      "model": {
        "family": "vit", "width": cell.width, "depth": cell.depth,
        "mlp_dim": 4 * cell.width, "num_heads": max(cell.width // 16, 1),
        "patch_size": cell.patch, "position": "sincos2d",
      },
      "task": {"name": "classify"},
      "optim": {
        "name": "adamw", "lr": lr, "weight_decay": 0.05, "clip_norm": 1.0,
        "schedule": {"kind": "cosine", "warmup_percent": 10.0},
      },
      "evals": {
        split: {"split": split, "every_percent": 100.0, "batch_size": 500}
      },
      "log": {"every_percent": 25.0},
      "checkpoint": {"keep": 1, "every_percent": 100.0},
    }
  )  # fmt: skip


def runs(scale_name: str, done: Results) -> list[Run]:
  """Pilots of a third of the steps for every cell, then the runs."""
  scale, found = SCALES[scale_name], []
  for cell in scale.cells:
    facts = {
      **dataclasses.asdict(cell), "cell": cell.name, "q": cell.q,
      "tokens": cell.tokens,
    }  # fmt: skip
    make = lambda arm, lr, seed, steps, split, cell=cell, facts=facts: Run(
      f"{arm}-{cell.name}-{f'lr{lr:g}' if arm == 'pilot' else f's{seed}'}",
      config(scale, cell, lr=lr, seed=seed, steps=steps, split=split),
      {**facts, "arm": arm, "seed": seed, "lr": lr},
      may_fail=arm == "pilot",
    )
    found += [
      make("pilot", lr, PILOT, scale.steps // 3, "val") for lr in scale.rates
    ]
    best = arms.best_rate(done, cell=cell.name)
    if best is not None:
      found += [
        make("run", best, seed, scale.steps, "test") for seed in scale.seeds
      ]
  return found


# ------------------------------------------------------------------ judgement


def points(done: Results) -> list[dict[str, Any]]:
  """A row per finished run: N, q, flops, loss, cell, seed, run."""
  rows = []
  for run in done.values():
    mine, loss = run["law_variables"], run["metrics"].get(LOSS)
    if mine["arm"] == "run" and run["status"] == "finished" and loss:
      rows.append(
        {
          "N": mine["params_non_embedding"], "q": mine["q"],
          "s": ORIGINAL / mine["size"],
          "flops": run["metrics"]["flops"], "loss": loss,
          "cell": mine["cell"], "seed": mine["seed"], "run": run["name"],
          "size": mine["size"], "tokens": mine["tokens"],
          "shape": (mine["width"], mine["depth"]), "lr": mine["lr"],
        }
      )  # fmt: skip
  return rows


def joint(rows: list[dict[str, Any]]) -> laws.Fit:
  """FORM, fitted; whole runs are resampled."""
  law = expression.law(FORM, ("N", "q", "s"), BOUNDS, "size and patch")
  return laws.fit(law, rows, groups="run")


def law(rows: list[dict[str, Any]], fit: laws.Fit) -> Verdict:
  """Claim 9."""
  misfit = fit.lack_of_fit
  answer = "inconclusive"
  if not fit.degenerate and math.isfinite(misfit):
    answer = "supported" if misfit > 0.01 else "not supported"
  p = fit.params
  seen = ", ".join(f"{k} = {v:.3g}" for k, v in p.items())
  if fit.degenerate:
    seen += f"; {fit.degenerate[0]}"
  return Verdict(
    f"one law, {FORM}, describes all resolutions, patches and shapes",
    answer,
    "not degenerate, lack of fit p > .01",
    f"{seen}; lack of fit p = {misfit:.2g} on {len(rows)} runs",
  )


def corner(rows: list[dict[str, Any]]) -> Verdict:
  """Claim 10: the largest model at the smallest patch, forecast."""
  claim = "the law forecasts the largest model at the smallest patch"
  threshold = (
    "fitted without the cell; mean inside the 95 % prediction interval, at"
    f" most a factor {WIDE} wide"
  )
  largest = max(r["N"] for r in rows)
  finest = min((r["q"], r["s"]) for r in rows)
  held = [r for r in rows if (r["N"], r["q"], r["s"]) == (largest, *finest)]
  rest = [r for r in rows if r not in held]
  if len(held) < 2:
    return Verdict(claim, "inconclusive", threshold, "fewer than two runs")
  fit = joint(rest)
  at = {"N": largest, "q": finest[0], "s": finest[1]}
  low, high = fit.predict_ci(runs=len(held), **at)
  low, high = float(low), float(high)
  measured = float(np.exp(np.mean([math.log(r["loss"]) for r in held])))
  value = fit.predict(**at)
  answer = "inconclusive"
  if math.isfinite(low) and high <= WIDE * low:
    answer = "supported" if low <= measured <= high else "not supported"
  return Verdict(
    claim,
    answer,
    threshold,
    f"{held[0]['cell']}: measured {measured:.3f}, forecast {value:.3f}"
    f" [{low:.3f}, {high:.3f}]",
    "",
    float(value),
    (low, high),
  )


def information(rows: list[dict[str, Any]]) -> Verdict:
  """Claim 11: equal tokens, twice the pixels in each."""
  coarse, fine = {}, {}
  for r in rows:
    into = {12: coarse, 24: fine}.get(r["size"], {})
    into.setdefault((r["tokens"], r["shape"], r["seed"]), math.log(r["loss"]))
  both = sorted(set(coarse) & set(fine))
  by_seed = {
    seed: float(
      np.mean([coarse[key] - fine[key] for key in both if key[2] == seed])
    )
    for seed in {key[2] for key in both}
  }
  kinds = sorted({key[0] for key in both})
  return arms.judged(
    "at equal tokens, more pixels in each lower the loss",
    "ln L(12 px) - ln L(24 px) at equal numbers of tokens and shapes above 0",
    {"difference": ([by_seed[s] for s in sorted(by_seed)], 0.0)},
    more=f"; {len(both)} pairs, {', '.join(map(str, kinds))} tokens",
  )


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """A row per cell, its loss the mean over seeds; by FLOPs, then loss."""
  cells_: dict[str, list] = {}
  for r in rows:
    cells_.setdefault(r["cell"], []).append(r)
  found = [
    {**each[0], "loss": float(np.mean([r["loss"] for r in each]))}
    for each in cells_.values()
  ]
  return sorted(found, key=lambda r: (r["flops"], r["loss"]))


def frontier(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Cells that no cell of fewer FLOPs beats, by FLOPs; means over seeds."""
  best, found = math.inf, []
  for r in means(rows):
    if r["loss"] < best:
      best = r["loss"]
      found.append(r)
  return found


def moves(rows: list[dict[str, Any]]) -> Verdict:
  """Claim 12: the best patch shrinks with the budget."""
  by_seed = {}
  for seed in sorted({r["seed"] for r in rows}):
    edge = frontier([r for r in rows if r["seed"] == seed])
    if len(edge) >= 3:
      x, y = (np.log([r[key] for r in edge]) for key in ("flops", "q"))
      by_seed[seed] = float(np.polyfit(x, y, 1)[0])
  return arms.judged(
    "the best patch shrinks as the budget grows",
    f"slope of ln q in ln FLOPs along each seed's frontier below {SLOPE}",
    {"slope": ([by_seed[s] for s in sorted(by_seed)], SLOPE)},
    direction="below",
  )


def figure(rows: list[dict[str, Any]], fit: laws.Fit) -> Figure:
  edge = frontier(rows)
  marks: list[Any] = []
  for q in sorted({r["q"] for r in rows}, reverse=True):
    mine = [r for r in rows if r["q"] == q]
    marks.append(
      Points(f"q = {q:.3g}", [r["flops"] for r in mine],
             [r["loss"] for r in mine])
    )  # fmt: skip
  marks.append(
    Line("frontier", [r["flops"] for r in edge], [r["loss"] for r in edge])
  )
  said = [float(fit.predict(N=r["N"], q=r["q"], s=r["s"])) for r in rows]
  panels = [
    Panel(Axis("training FLOPs", "log"), Axis("test loss (nats)"), marks),
    Panel(
      Axis("loss by the law"), Axis("test loss (nats)"),
      [Points("runs", said, [r["loss"] for r in rows])],
    ),
  ]  # fmt: skip
  return Figure(
    "frontier", "Resolution, patch and shape against compute", panels,
    "q is the side of a patch in pixels of the 28 px original.",
    palette="sequence",
  )  # fmt: skip


def tables(rows: list[dict[str, Any]]) -> list[Table]:
  show = lambda r: {
    "cell": r["cell"], "q": f"{r['q']:.3g}", "tokens": r["tokens"],
    "N": r["N"], "GFLOP": f"{r['flops'] / 1e9:.3g}",
    "test loss": f"{r['loss']:.3f}", "rate": f"{r['lr']:g}",
  }  # fmt: skip
  return [
    Table("Frontier", [show(r) for r in frontier(rows)]),
    Table("Cells", [show(r) for r in means(rows)]),
  ]


def analyse(done: Results, scale: str) -> dict[str, Any]:
  """The joint law, the frontier and their verdicts."""
  rows = points(done)
  fit = joint(rows)
  return {
    "title": f"Resolution, patch and size ({scale})",
    "text": "One law over everything that a budget can be spent on, and the"
    " best cell of each budget.",
    "laws": [fit.card()],
    "verdicts": [law(rows, fit), corner(rows), information(rows), moves(rows)],
    "tables": tables(rows),
    "figures": [figure(rows, fit)],
  }
