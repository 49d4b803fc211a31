"""Families: a module with `Model`, and what a config makes of it.

A family module has `Model`, a flax module whose call gives `(y, out)` with
`out["features"]`, and `variant(name) -> options`. Nothing registers it; the
config's `model.family` is its name, or the path of any module with a dot.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterable
from typing import Any

import flax.linen as nn

from vitscale import plugin
from vitscale.core.config import Reader
from vitscale.core.errors import UserError, nearest

SIZE = re.compile(r"(\w+_)?(width|depth|mlp_dim|num_heads)")


def check_draw(model: nn.Module, names: Iterable[str], where: str) -> None:
  """Checks names of draws against what a model's call takes.

  Raises:
    UserError: no such argument; images and `train` are nobody's to draw.
  """
  known = [
    name
    for name in inspect.signature(model.__call__).parameters
    if name not in ("image", "train")
  ]
  for name in names:
    if name not in known:
      raise UserError(
        f"{where}.{name}: {type(model).__module__} takes no such argument"
        f"{nearest(name, known)}"
      )


def make(config: Reader, source: Any) -> tuple[nn.Module, nn.Module]:
  """The model of a config group, and its twin that accounting counts.

  Args:
    config: `family`, `variant` and options of the family's Model.
    source: training data; classes are its, unless the config says another.

  Raises:
    UserError: unknown family or option, or a size below 1.
  """
  family = plugin.module("models", config["family"])
  kwargs = config.kwargs("family", "variant")
  if config.get("variant"):
    kwargs = {**family.variant(config["variant"]), **kwargs}
  known = [f.name for f in dataclasses.fields(family.Model)]
  of_data = {"num_classes": source.classes, "channels": len(source.mean)}
  if source.vocabulary is not None:
    of_data["vocabulary"] = source.vocabulary
  kwargs = {k: v for k, v in of_data.items() if k in known} | kwargs
  for name, size in kwargs.items():
    if not SIZE.fullmatch(name):
      continue
    each = size if isinstance(size, tuple | list) else [size]  # per layer
    if not each or any(type(s) is not int or s < 1 for s in each):
      raise UserError(f"model.{name}={size!r}: should be 1 or more")
  for name in kwargs:
    if name not in known or name in ("parent", "name"):
      raise UserError(
        f"unknown config key 'model.{name}'{nearest(name, known)}"
      )
  # A run.json has lists where a config has tuples; modules are hashed.
  kwargs = {k: tuple(v) if type(v) is list else v for k, v in kwargs.items()}
  model = family.Model(**kwargs)
  plain = {"attention": "reference", "remat": None}
  twin = {k: v for k, v in plain.items() if k in known}
  return model, model.clone(**twin)
