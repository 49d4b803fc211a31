"""What the runs of retrieval show: who finds whom, what is between."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

SIZES = {"S": "ffn=1/8", "M": "ffn=1/4", "L": "ffn=1/2", "XL": "full"}
PARTS = {
  "S": Fraction(1, 8), "M": Fraction(1, 4), "L": Fraction(1, 2),
  "XL": Fraction(1),
}  # fmt: skip


def wide(part: str) -> str:
  """A spec that cuts every width alike, as Scala does."""
  return f"ffn={part} heads={part} embed={part}"


WIDTHS = (*map(wide, ("1/4", "1/2", "3/4")), "full")
Results = Mapping[str, Mapping[str, Any]]


def best_rate(done: Results) -> float | None:
  """The pilots' rate with the lowest loss on `val`; None before they ran."""
  found = {
    run["law_variables"]["lr"]: run["metrics"].get("eval/val/nll")
    for run in done.values()
    if run["law_variables"].get("arm") == "pilot"
  }
  good = {lr: v for lr, v in found.items() if v is not None}
  return min(good, key=good.__getitem__) if good else None


def analyse(done: Results) -> dict[str, Any]:
  return {}
