"""The laws by name, for `vitscale fit --law`."""

from collections.abc import Callable

from vitscale.core.errors import UserError, nearest
from vitscale.laws import joint, single
from vitscale.laws.forms import Law

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
