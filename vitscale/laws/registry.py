"""The laws by name, or by formula, for `vitscale fit --law`."""

import difflib
import re
from collections.abc import Callable, Collection, Mapping

from vitscale.core.errors import UserError, nearest
from vitscale.laws import expression, formula, joint, single
from vitscale.laws.forms import Bound, Law
from vitscale.laws.table import CONVENTIONS

LAWS: dict[str, Callable[[], Law]] = {
  "power": lambda: single.power("x"),
  "power_constant": lambda: single.power_constant("x"),
  "henighan": single.henighan,
  "shifted": single.shifted,
  "saturating": single.saturating,
  "bnsl1": lambda: single.bnsl(1),
  "bnsl2": lambda: single.bnsl(2),
  "bnsl3": lambda: single.bnsl(3),
  "zhai": single.zhai,
  "chinchilla": joint.chinchilla,
  "chinchilla_tied": lambda: joint.chinchilla(tied=True),
  "kaplan": joint.kaplan,
  "ghorbani": joint.ghorbani,
  "gadre": joint.gadre,
  "muennighoff": joint.muennighoff,
  "sovit": joint.sovit,
  "elastic": joint.elastic,
  "tokenizer": single.tokenizer,
  "patch": single.patch,
}


def named(name: str) -> Law:
  """A law of the catalogue.

  Raises:
    UserError: no such law (nearest offered).
  """
  if name not in LAWS:
    raise UserError(f"no law {name!r}{nearest(name, LAWS)}")
  return LAWS[name]()


def find(
  text: str,
  columns: Collection[str],
  bounds: Mapping[str, Bound] | None = None,
) -> tuple[Law, list[str]]:
  """A law by name, or from a formula of columns and parameters.

  Args:
    text: a name of `LAWS`, or a formula (`expression.law`).
    columns: names that a formula may mean by its variables, apart from those
      that `table.derive` can add. A name with bounds is a parameter.
    bounds: see `Law.bound`.

  Returns:
    The law, and what was taken for what.

  Raises:
    UserError: neither a name nor a formula.
  """
  bounds = bounds or {}
  if text in LAWS or not re.search(r"[-+*/^()]", text):
    return named(text).bound(bounds), []
  known = derivable(columns)
  tree, written = formula.parse(text)
  names = dict.fromkeys(formula.names(tree))
  if "loss" in names:
    raise UserError(f"formula {written!r} holds the loss itself")
  variables = [n for n in names if n in known and n not in bounds]
  if not variables:
    close = difflib.get_close_matches(text, LAWS, 1, 0.7)
    raise UserError(
      f"no law {text!r}, did you mean {close[0]!r}?"
      if close
      else f"formula {written!r}: no name in it is a column ({', '.join(names)}"
      f" are not; columns: {', '.join(columns)})"
    )
  law = expression.law(text, variables, bounds)
  unknown = [p.name for p in law.parameters if p.name in names]
  return law, [
    f"in the formula, {', '.join(variables)} are data and"
    f" {', '.join(unknown)} are fitted"
  ]


def derivable(columns: Collection[str]) -> set[str]:
  """The columns and what the conventions add to them."""
  known = set(columns)
  while True:
    new = {
      name
      for name, rule in CONVENTIONS.items()
      if set(re.findall("[A-Z]", rule)) <= known
    }
    if new <= known:
      return known
    known |= new
