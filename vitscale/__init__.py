"""vitscale: scale, nest, plan and compare vision transformers on one bench.

    import vitscale as vs
    model, variables = vs.load("workdir")
    table = vs.runs("out/patchify-quick/runs")
    fit = vs.laws.fit(vs.laws.power_constant("p"), rows, groups="run")

Submodules are imported when first used, so that `import vitscale` is quick.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# `train` is the module: importing it anywhere puts it under this name.
_HOMES = {
  "load": "vitscale.workdir",
  "runs": "vitscale.workdir",
  "train": None,
  "laws": None,
  "study": None,
  "sweep": None,
}


def __getattr__(name: str) -> Any:
  if name not in _HOMES:
    raise AttributeError(f"module 'vitscale' has no attribute {name!r}")
  home = _HOMES[name]
  if home is None:
    return importlib.import_module(f"vitscale.{name}")
  return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_HOMES])
