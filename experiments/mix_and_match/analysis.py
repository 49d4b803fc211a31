"""What the mixes show: regret of every selector, its intervals, verdicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.arms import interval
from vitscale.core.config import load_module
from vitscale.laws.verdict import Answer, Verdict, all_of, decide
from vitscale.report.figures import Axis, Figure, Line, Panel, Points
from vitscale.report.page import Table

tables = load_module(Path(__file__).parent / "tables.py")
SHARES = tables.SHARES
EQUAL = 0.02  # of the span of costs: what counts as equal cost
GOAL = 0.2  # points of regret
DRAWS = 2000  # of a bootstrap
SHAPES = ("decreasing", "increasing_decreasing", "decreasing_increasing")

Picks = Mapping[tuple[str, float], Any]
Seen = Mapping[int, tuple[Any, Picks]]  # seed -> scores, picks


# ------------------------------------------------------------------ readings


def reference(scores: Any, share: float) -> int:
  """The mix with the least selection loss of all that fit."""
  return _best(scores, share, scores.chosen_on)


def _best(scores: Any, share: float, losses: np.ndarray) -> int:
  return int(np.where(_fit(scores, share), losses, np.inf).argmin())


def _fit(scores: Any, share: float) -> np.ndarray:
  return scores.cost <= share + 1e-9


def equal_cost(scores: Any, share: float) -> np.ndarray:
  """(mixes,) bool: within `EQUAL` of the span below the costliest that fits."""
  fit = _fit(scores, share)
  return fit & (scores.cost > scores.cost[fit].max() - EQUAL)


def rows(scores: Any, mix: int | np.ndarray, what: str) -> np.ndarray:
  """(images,) losses or points of a mix; the mean over several."""
  if what == "points":
    table = 100.0 * scores.correct[mix]
  else:
    table = scores.losses[mix].astype(np.float64)
  return table if table.ndim == 1 else table.mean(0)


def gaps(seen: Seen, worse: Any, better: Any, what: str) -> np.ndarray:
  """(seeds, images): one test score minus another, mean over the budgets.

  `worse` and `better` are `(scores, picks, share) -> (images,)`.
  """
  return np.stack([
    np.mean([
      worse(scores, picks, share, what) - better(scores, picks, share, what)
      for share in SHARES
    ], 0)
    for scores, picks in seen.values()
  ])  # fmt: skip


def of(selector: str) -> Any:
  """Test scores of a selector's picks, image by image."""
  return lambda scores, picks, share, what: rows(
    scores, picks[selector, share].mix, what
  )


def of_reference(scores, picks, share, what) -> np.ndarray:
  return rows(scores, reference(scores, share), what)


def of_random(scores, picks, share, what) -> np.ndarray:
  """A random mix of equal cost, in the mean over all of them."""
  return rows(scores, np.nonzero(equal_cost(scores, share))[0], what)


def of_shapes(scores, picks, share, what) -> np.ndarray:
  """The pick of least test loss among the shapes that do not only rise."""
  best = min(
    (picks[shape, share].mix for shape in SHAPES),
    key=lambda mix: scores.loss[mix],
  )
  return rows(scores, best, what)


# ----------------------------------------------------------------- intervals


def over_images(found: np.ndarray) -> tuple[float, float]:
  """95 % of a bootstrap over images of the mean over seeds."""
  values, rng = found.mean(0), np.random.default_rng(0)
  n = len(values)
  means = [values[rng.integers(n, size=n)].mean() for _ in range(DRAWS)]
  low, high = np.quantile(means, [0.025, 0.975])
  return float(low), float(high)


def said(found: np.ndarray, unit: str) -> str:
  """Mean and both intervals."""
  seeds, (low, high) = interval(found.mean(1)), over_images(found)
  text = f"{found.mean():.4f} {unit}, images [{low:.4f}, {high:.4f}]"
  if seeds is None:
    return f"{text}, one seed"
  return f"{text}, seeds [{seeds[0]:.4f}, {seeds[1]:.4f}]"


def judged(
  claim: str, threshold: str, found: np.ndarray, bar: float, direction: str,
  unit: str, control: str = "",
) -> Verdict:  # fmt: skip
  """A verdict that both intervals have to allow."""
  seeds = interval(found.mean(1))
  answers: dict[str, Answer] = {
    "seeds": decide(seeds, bar, direction),
    "images": decide(over_images(found), bar, direction),
  }
  answer, _ = all_of(answers)
  if set(answers.values()) == {"not supported", "inconclusive"}:
    answer = "inconclusive"
  return Verdict(
    claim, answer, threshold, said(found, unit), control,
    float(found.mean()), seeds,
  )  # fmt: skip


# ------------------------------------------------------------------ verdicts


def verdicts(seen: Seen) -> list[Verdict]:
  """The README's claims, in its order."""
  scored = lambda how: max(
    picks[how, share].scored for _, picks in seen.values() for share in SHARES
  )

  anyone = gaps(seen, of_reference, of_random, "points").mean()

  def regret(claim: str, how: str) -> Verdict:
    return judged(
      claim, f"regret below {GOAL} points",
      gaps(seen, of_reference, of(how), "points"), GOAL, "below", "points",
      f"at most {scored(how)} models scored; a random mix of equal cost:"
      f" {anyone:.4f} points",
    )  # fmt: skip

  def more(claim: str, threshold: str, worse, better, control="") -> Verdict:
    found = gaps(seen, worse, better, "loss")
    return judged(claim, threshold, found, 0.0, "above", "nats", control)

  return [
    regret("sensitivity gives nothing away", "sensitivity"),
    regret("the rule gives nothing away", "least_slope"),
    more(
      "measuring beats the rule", "loss of least_slope minus sensitivity > 0",
      of("least_slope"), of("sensitivity"),
    ),
    more(
      "rising is the right shape",
      "least loss of the other three shapes minus increasing > 0",
      of_shapes, of("increasing"),
    ),
    regret("a router learns it", "router"),
    regret("evolution finds it", "evolutionary"),
    more(
      "choosing matters", "loss of random mixes minus the reference > 0",
      of_random, of_reference, "mixes of equal cost",
    ),
  ]  # fmt: skip


# -------------------------------------------------------------------- report


def regrets(seen: Seen, selectors: Sequence[str]) -> Table:
  """Of every selector: what it scored, and what it gives away."""
  out = []
  mean = lambda worse, better, what: round(
    float(gaps(seen, worse, better, what).mean()), 4
  )

  def bound(what: str):
    """The best test score of all that fit: nobody can choose it."""
    return lambda scores, picks, share, _: rows(
      scores, _best(scores, share, scores.loss if what == "loss"
                    else -scores.accuracy), what,
    )  # fmt: skip

  for how in (*selectors, "random of equal cost", "reference"):
    made = {
      "random of equal cost": of_random, "reference": of_reference,
    }.get(how, of(how))  # fmt: skip
    scored = [
      picks[how, share].scored
      for _, picks in seen.values()
      for share in SHARES
      if how in selectors
    ]
    out.append({
      "selector": how,
      "scored": round(float(np.mean(scored))) if scored else "",
      "regret, points": mean(of_reference, made, "points"),
      "regret, nats": mean(made, of_reference, "loss"),
      "to the bound, points": mean(bound("points"), made, "points"),
      "to the bound, nats": mean(made, bound("loss"), "loss"),
    })  # fmt: skip
  return Table(
    "Regret on test images, mean over budgets and seeds", out,
    caption="Against the least selection loss; and against the best test score"
    " of all that fit, which can't be chosen.",
  )  # fmt: skip


def by_budget(seen: Seen, selectors: Sequence[str]) -> Table:
  """Test loss at every budget."""
  out = []
  for how in (*selectors, "random of equal cost", "reference"):
    made = {
      "random of equal cost": of_random, "reference": of_reference,
    }.get(how, of(how))  # fmt: skip
    cells = {
      f"{share:g}": round(float(np.mean([
        made(scores, picks, share, "loss").mean()
        for scores, picks in seen.values()
      ])), 4)
      for share in SHARES
    }  # fmt: skip
    out.append({"selector": how, **cells})
  return Table("Test loss (nats) by budget, share of the span of MACs", out)


def chosen(seen: Seen, selectors: Sequence[str]) -> Table:
  """Mixes of the first seed at the middle budget, level numbers by layer."""
  scores, picks = next(iter(seen.values()))
  middle = SHARES[len(SHARES) // 2]
  number = {how: picks[how, middle].mix for how in selectors}
  number["reference"] = reference(scores, middle)
  out = [
    {
      "selector": how,
      "levels": " ".join(map(str, scores.mixes[mix])),
      "cost": round(float(scores.cost[mix]), 3),
      "selection loss": round(float(scores.chosen_on[mix]), 4),
      "test loss": round(float(scores.loss[mix]), 4),
    }
    for how, mix in number.items()
  ]
  return Table(f"What is chosen at {middle:g}, first seed", out)


def figure(seen: Seen) -> Figure:
  """All mixes of the first seed, and what selectors take of them."""
  scores, picks = next(iter(seen.values()))
  marks: list[Any] = [Points("every mix", scores.cost, scores.loss, faint=True)]
  for how in ("least_slope", "sensitivity", "exhaustive"):
    mixes = [picks[how, share].mix for share in SHARES]
    marks.append(Line(how, scores.cost[mixes], scores.loss[mixes]))
  return Figure(
    "mixes", "Every mix, and three selectors",
    [Panel(Axis("cost, share of the span"), Axis("test loss (nats)"), marks)],
    caption="First seed; 0 is the smallest model, 1 the whole one.",
  )  # fmt: skip


def analyse(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  seen = {
    run["law_variables"]["seed"]: tables.scores_of(
      dict(run), Path(run["workdir"]).parent / "scores"
    )
    for run in done.values()
    if run["status"] == "finished"
  }
  selectors = list(
    dict.fromkeys(how for how, _ in next(iter(seen.values()))[1])
  )
  return {
    "title": "Which mix of levels for a budget?",
    "verdicts": verdicts(seen),
    "tables": [
      regrets(seen, selectors),
      by_budget(seen, selectors),
      chosen(seen, selectors),
    ],
    "figures": [figure(seen)],
  }
