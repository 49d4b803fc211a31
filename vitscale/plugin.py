"""A name in a config -> a module; a module is the plug-in, none registers."""

import importlib
import pkgutil
from typing import Any

from vitscale.core.errors import UserError, nearest


def module(kind: str, name: str) -> Any:
  """vitscale.KIND.NAME, or any importable module when NAME has a dot."""
  path = name if "." in name else f"vitscale.{kind}.{name}"
  try:
    return importlib.import_module(path)
  except ModuleNotFoundError as error:
    if error.name and not path.startswith(error.name):
      raise
    package = importlib.import_module(f"vitscale.{kind}")
    known = [m.name for m in pkgutil.iter_modules(package.__path__)]
    raise UserError(f"no {kind[:-1]} {name!r}{nearest(name, known)}") from None
