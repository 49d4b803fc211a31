"""The text of a formula as a tree: parsed, checked, never executed.

    parse("E + A/N^a") -> ("+", "E", ("/", "A", ("^", "N", "a")))

What is not arithmetic on numbers and names is refused with its place.
"""

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vitscale.core.errors import UserError, nearest
from vitscale.laws.numeric import raised

# A number, a name, or (operation, *arguments).
Tree = float | str | tuple

_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/",
           ast.Pow: "^"}  # fmt: skip
FUNCTIONS = {"exp": 1, "log": 1, "log10": 1, "sqrt": 1, "min": 2, "max": 2}
_LONGEST = 500  # characters of a formula


def parse(text: str) -> tuple[Tree, str]:
  """The tree of a formula, and the formula as it is written in reports.

  Raises:
    UserError: with the place of what is not allowed.
  """
  text = re.sub(r"^\s*\w+\s*=(?!=)", "", " ".join(text.split())).strip()
  if not text or len(text) > _LONGEST:
    raise UserError(
      f"the formula has {len(text)} characters, must have 1 to {_LONGEST}"
    )
  origin = [i for i, c in enumerate(text) for _ in (c.replace("^", "**"))]
  python = text.replace("^", "**")

  def complain(what: str, at: int) -> UserError:
    at = origin[min(max(at, 0), len(origin) - 1)]
    return UserError(f"formula {text!r}, character {at + 1}: {what}")

  def tree(node: ast.AST) -> Tree:
    at = len(python.encode()[: getattr(node, "col_offset", 0)].decode())
    match node:
      case ast.BinOp(left, op, right) if type(op) in _BINARY:
        return _folded(_BINARY[type(op)], tree(left), tree(right))
      case ast.UnaryOp(ast.USub(), operand):
        return _folded("neg", tree(operand))
      case ast.UnaryOp(ast.UAdd(), operand):
        return tree(operand)
      case ast.Constant(int() | float() as v) if not isinstance(v, bool):
        if not math.isfinite(v):
          raise complain(f"{v} is not finite", at)
        return float(v)
      case ast.Name(word) if word in FUNCTIONS:
        raise complain(f"{word!r} is a function, not a name", at)
      case ast.Name(word):
        return word
      case ast.Call(ast.Name(word), arguments, []):
        if word not in FUNCTIONS:
          raise complain(f"no function {word!r}{nearest(word, FUNCTIONS)}", at)
        if len(arguments) != FUNCTIONS[word]:
          raise complain(f"{word} takes {FUNCTIONS[word]} arguments", at)
        return _folded(word, *map(tree, arguments))
    raise complain(
      f"{ast.unparse(node)!r} is not allowed: only + - * / ^, numbers, names"
      f" and {', '.join(FUNCTIONS)}",
      at,
    )

  try:
    parsed = ast.parse(python, mode="eval").body
    return tree(parsed), _tidy(ast.unparse(parsed))
  except SyntaxError as error:
    where = (error.offset or 1) - 1
    raise complain("expected an operator or a name, as in 2*N", where) from None
  except (ArithmeticError, ValueError, RecursionError, MemoryError) as error:
    raise UserError(f"formula {text!r}: {error or 'too deep'}") from None


def _tidy(python: str) -> str:
  for a, b in ((" ** ", "^"), (" * ", "*"), (" / ", "/")):
    python = python.replace(a, b)
  return python


def _folded(op: str, *arguments: Tree) -> Tree:
  """An operation; constants become one number, (-a) b becomes -(a b)."""
  if any(not isinstance(a, float) for a in arguments):
    first = arguments[0]
    if op in ("*", "/") and isinstance(first, tuple) and first[0] == "neg":
      return ("neg", (op, first[1], arguments[1]))
    return (op, *arguments)
  with np.errstate(all="ignore"):
    number = float(apply(np, op, *map(np.float64, arguments)))
  if not math.isfinite(number):
    raise ArithmeticError(f"{op} of {arguments} is not a finite number")
  return number


def names(tree: Tree, *, exponents: bool = False) -> list[str]:
  """Names in order, as often as they stand; or those in exponents alone."""
  if isinstance(tree, str):
    return [] if exponents else [tree]
  if isinstance(tree, float):
    return []
  out = []
  for i, part in enumerate(tree[1:]):
    whole = tree[0] == "^" and i == 1
    out += names(part, exponents=exponents and not whole)
  return out


def apply(xp: Any, op: str, *a: Any) -> Any:
  """One operation on values; xp is numpy or jax.numpy."""
  match op:
    case "+":
      return a[0] + a[1]
    case "-":
      return a[0] - a[1]
    case "*":
      return a[0] * a[1]
    case "/":
      return a[0] / a[1]
    case "neg":
      return -a[0]
    case "^" if isinstance(a[1], float) and a[1] in range(-16, 17):
      return a[0] ** int(a[1])  # of negative bases too
    case "^":
      return raised(a[0], a[1])
    case "min":
      return xp.minimum(*a)
    case "max":
      return xp.maximum(*a)
  return getattr(xp, op)(a[0])


def value(xp: Any, tree: Tree, given: Mapping[str, Any]) -> Any:
  """A tree on the values of its names."""
  if isinstance(tree, float):
    return tree
  if isinstance(tree, str):
    return given[tree]
  return apply(xp, tree[0], *(value(xp, t, given) for t in tree[1:]))
