"""Verdicts: a claim, a threshold fixed beforehand, and what was measured."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

Answer = Literal["supported", "not supported", "inconclusive"]
Direction = Literal["above", "below"]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """One line of a study's answer.

  Attributes:
    claim: a sentence that can be false.
    verdict: what the measurement says about it.
    threshold: the criterion as written in the study's README before the run.
    measured: what was seen, in words and numbers.
    control: the comparison that makes the claim mean something.
    value, ci: the same measurement as numbers, where there is one.
  """

  claim: str
  verdict: Answer
  threshold: str
  measured: str
  control: str = ""
  value: float | None = None
  ci: tuple[float, float] | None = None

  def __post_init__(self):
    if self.verdict not in ("supported", "not supported", "inconclusive"):
      raise ValueError(f"verdict {self.verdict!r} of claim {self.claim!r}")

  def as_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def decide(
  ci: tuple[float, float] | None,
  threshold: float,
  direction: Direction = "above",
) -> Answer:
  """Judges an interval against a threshold.

  The interval wholly beyond the threshold supports the claim, wholly on the
  other side contradicts it; astride, touching, unbounded on the side that
  matters, missing or NaN, it decides nothing.
  """
  if direction not in ("above", "below"):
    raise ValueError(f"direction {direction!r} (above or below)")
  if ci is None or any(math.isnan(v) for v in (*ci, threshold)):
    return "inconclusive"
  low, high = ci
  if low > high:
    raise ValueError(f"interval {ci} is upside down")
  if direction == "below":
    low, high, threshold = -high, -low, -threshold
  if low > threshold:
    return "supported"
  if high < threshold:
    return "not supported"
  return "inconclusive"


def within(ci: tuple[float, float] | None, margin: float) -> Answer:
  """Judges equivalence: "no effect larger than `margin` either way".

  A plateau or an invariance is such a claim. Not finding a difference is not
  finding equality, so a wide interval stays inconclusive.
  """
  if margin <= 0:
    raise ValueError(f"margin {margin} must be positive")
  answers = {decide(ci, -margin, "above"), decide(ci, margin, "below")}
  if answers == {"supported"}:
    return "supported"
  return "not supported" if "not supported" in answers else "inconclusive"


def all_of(answers: Mapping[str, Answer]) -> tuple[Answer, str]:
  """A claim with several parts: the worst part decides; names it."""
  if not answers:
    return "inconclusive", "nothing was measured"
  for answer in ("not supported", "inconclusive"):
    named = [k for k, v in answers.items() if v == answer]
    if named:
      return answer, f"{answer}: {', '.join(named)}"
  return "supported", f"all {len(answers)} parts hold"
