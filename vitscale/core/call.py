"""Calls a user wrote, read without `eval` and checked: `crop(28, pad=2)`."""

import ast
import dataclasses
import inspect
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitscale.core.errors import UserError, nearest

_KINDS = {int: "an integer", float: "a number", str: "a string"}
_ACCEPTED = {
  int: numbers.Integral,
  float: numbers.Real,
  str: (str, os.PathLike),
}


def _fits(value: Any, kind: type) -> bool:
  return isinstance(value, _ACCEPTED[kind]) and not isinstance(value, bool)


def read(text: str, what: str) -> tuple[str, list, dict]:
  """`crop(28, pad=2)` -> ("crop", [28], {"pad": 2}); literal values only.

  Args:
    text: a name, or a call.
    what: names the place in errors, for example `model.mixer`.

  Raises:
    UserError: anything else.
  """
  try:
    node = ast.parse(text.strip(), mode="eval").body
    if isinstance(node, ast.Name):
      return node.id, [], {}
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
      raise ValueError
    kwargs = {k.arg: ast.literal_eval(k.value) for k in node.keywords}
    if None in kwargs:  # **something
      raise ValueError
    return node.func.id, [ast.literal_eval(a) for a in node.args], kwargs
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    raise UserError(
      f"{what}: cannot read {text.strip()!r}; write a name with literal"
      " arguments, such as random_crop(28, pad=2)"
    ) from None


def bind(
  fn: Callable,
  args: Sequence[Any],
  kwargs: Mapping[str, Any],
  *,
  what: str,
  skip: int = 0,
) -> dict[str, Any]:
  """All arguments of `fn` by name, checked against its signature.

  Args:
    fn: plain function; parameters annotated int, float or str are checked.
    args, kwargs: as the user gave them.
    what: names the call in errors, for example `data.transform`.
    skip: leading parameters that the caller supplies later.

  Raises:
    UserError: unknown, missing, surplus or wrongly typed arguments.
  """
  parameters = dict(list(inspect.signature(fn).parameters.items())[skip:])
  if len(args) > len(parameters):
    raise UserError(
      f"{what}: {fn.__name__} takes at most {len(parameters)} arguments "
      f"({', '.join(parameters)}), got {len(args)}"
    )
  given = dict(zip(parameters, args))
  for name in kwargs:
    if name not in parameters:
      hint = nearest(name, parameters)
      raise UserError(f"{what}: {fn.__name__} has no argument {name!r}{hint}")
    if name in given:
      raise UserError(f"{what}: {fn.__name__} got {name!r} twice")
  given.update(kwargs)
  for name, parameter in parameters.items():
    if name not in given:
      if parameter.default is parameter.empty:
        raise UserError(f"{what}: {fn.__name__} needs {name!r}")
      continue
    kind = parameter.annotation
    if kind in _KINDS and not _fits(given[name], kind):
      raise UserError(
        f"{what}: {name} of {fn.__name__} must be {_KINDS[kind]}, "
        f"got {given[name]!r}"
      )
  return given


FLAX = ("parent", "name")  # fields of every flax module


def fields(module: type) -> dict[str, Any]:
  """Name -> type of the options of a flax module, in order."""
  found = dataclasses.fields(module)
  return {f.name: f.type for f in found if f.name not in FLAX}


def options(
  known: Mapping[str, Any],
  args: Sequence[Any],
  kwargs: Mapping[str, Any],
  *,
  what: str,
) -> dict[str, Any]:
  """Options of a module by name, those of type int or float checked.

  Args:
    known: name -> type, in order, see `fields`.
    args, kwargs: as the user gave them.
    what: names the place in errors, for example `model.mixer 'scan(8)'`.

  Raises:
    UserError: unknown, surplus, repeated or wrongly typed options.
  """
  if len(args) > len(known):
    takes = f"takes {', '.join(known)}" if known else "takes no options"
    raise UserError(f"{what}: {takes}, got {len(args)} values")
  given = dict(zip(known, args)) | dict(kwargs)
  for name, value in given.items():
    if name not in known:
      raise UserError(f"{what}: no option {name!r}{nearest(name, known)}")
    kind = known[name]
    whole = type(value) is int or (kind is float and type(value) is float)
    if kind in (int, float) and not whole:
      raise UserError(
        f"{what}: {name} should be {kind.__name__}, got {value!r}"
      )
  if twice := set(kwargs) & set(list(known)[: len(args)]):
    raise UserError(f"{what}: {sorted(twice)[0]!r} is given twice")
  return given
