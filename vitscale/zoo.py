"""The zoo: every family and variant with its exact size, and ZOO.md.

A family is a module of `vitscale.models`; nothing registers it. Beside
`Model`, `VARIANTS` and `variant` it tells about itself

    PAPER = "Dosovitskiy et al. 2020, arXiv:2010.11929"
    FIDELITY = "exact"                            # see FIDELITIES
    PRESENTED = {"mu/4": {}, "L/16@384": {...}}   # variant[@pixels]: options

and may have `flops_per_image(kwargs, (h, w, c))`, its multiply-accumulates by
hand, and `example_inputs(image)`, what a call needs besides the image (time
steps, labels) as keyword arguments. The first of PRESENTED is the toy.

Sizes come from shapes alone. What the contract tests saw is in
`models/contract.json`; `python -m vitscale.zoo --write` runs them and writes
both that file and ZOO.md.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from vitscale import models
from vitscale.core import accounting, axes
from vitscale.core.errors import UserError, nearest
from vitscale.report import plain

FIDELITIES: dict[str, str] = {
  "exact": "the published model, checked against a reference implementation",
  "interpretation": "the paper leaves choices open; the file names ours",
  "abstract-level": "built from what the abstract says, no more was public",
}
CONTRACT = Path(models.__file__).with_name("contract.json")
ROOT = Path(__file__).parents[1]  # of a clone
COLUMNS = ("family", "variant", "params", "gmacs_per_image", "resolution")
COLUMNS += ("paper", "fidelity", "contract")


# ------------------------------------------------------------------ families


def names() -> list[str]:
  """Modules of `vitscale.models`, alphabetically."""
  found = pkgutil.iter_modules(models.__path__)
  return sorted(m.name for m in found if not m.name.startswith("_"))


def family(name: str) -> ModuleType:
  """The module of a family.

  Raises:
    UserError: there is none of that name.
  """
  if name not in names():
    raise UserError(f"model family {name!r}{nearest(name, names())}")
  return importlib.import_module(f"{models.__name__}.{name}")


@dataclasses.dataclass(frozen=True)
class Shown:
  """One variant as the zoo presents it: its options as published."""

  module: ModuleType
  variant: str
  image: tuple[int, int, int]  # (h, w, c)
  classes: int
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def fields(self) -> frozenset[str]:
    """Options that the family's `Model` has."""
    return frozenset(f.name for f in dataclasses.fields(self.module.Model))

  def kwargs(self, **changes: Any) -> dict[str, Any]:
    """Keyword arguments of `Model`."""
    task = {"num_classes": self.classes} if "num_classes" in self.fields else {}
    size = self.module.variant(self.variant)
    return {**task, **size, **self.options, **changes}

  def model(self, **changes: Any) -> Any:
    return self.module.Model(**self.kwargs(**changes))

  def abstract(self, batch: int = 1) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((batch, *self.image), jnp.float32)


def presented(module: ModuleType) -> list[Shown]:
  """What PRESENTED lists: toys on 28 grey pixels, the rest as ImageNet.

  An option `channels` says another number of them.
  """
  out = []
  for text, options in module.PRESENTED.items():
    name, _, pixels = text.partition("@")
    toy = name.startswith("mu")
    side = int(pixels) if pixels else 28 if toy else 224
    channels = options.get("channels", 1 if toy else 3)
    image, classes = (side, side, channels), 10 if toy else 1000
    out.append(Shown(module, name, image, classes, options))
  return out


# --------------------------------------------------------------------- sizes


def more_inputs(module: ModuleType, image: Any) -> dict[str, Any]:
  """What a call of the family needs besides the image, abstract or not."""
  make = getattr(module, "example_inputs", lambda image: {})
  if isinstance(image, jax.ShapeDtypeStruct):
    return jax.eval_shape(make, image)
  return make(image)


def boxed(module: ModuleType, model: Any, image: Any) -> Any:
  """Abstract variables of a model in their boxes of axis names."""
  more = more_inputs(module, image)
  return jax.eval_shape(model.init, jax.random.key(0), image, **more)


def count_macs(
  module: ModuleType, model: Any, image: tuple[int, int, int]
) -> int:
  """Multiply-accumulates that one image adds to a forward pass.

  Counted on the jaxpr: what a second image costs, so that products which
  all images share (of a learned query, say) don't count.
  """
  one, two = (jax.ShapeDtypeStruct((b, *image), jnp.float32) for b in (1, 2))
  variables = axes.unbox(boxed(module, model, one))
  cost = [
    accounting.count_flops(model.apply, variables, x, **more_inputs(module, x))
    for x in (one, two)
  ]
  return (cost[1].matmul - cost[0].matmul) // 2


def params_and_macs(shown: Shown) -> tuple[int, int]:
  """Trained parameters, and multiply-accumulates of one image."""
  stacked = {"scan": True} if "scan" in shown.fields else {}  # traces faster
  model = shown.model(**stacked)
  variables = axes.unbox(boxed(shown.module, model, shown.abstract()))
  params = sum(x.size for x in jax.tree.leaves(variables["params"]))
  by_hand = getattr(shown.module, "flops_per_image", None)
  if by_hand:  # equal to the count: the contract tests hold it to that
    return params, by_hand(shown.kwargs(), shown.image)
  return params, count_macs(shown.module, model, shown.image)


# ---------------------------------------------------------------------- rows


def rows(family: str | None = None) -> list[dict[str, Any]]:
  """One row per presented variant, ready for JSON.

  Args:
    family: only this one.

  Returns:
    Dicts of `COLUMNS`: `params` exact, `gmacs_per_image` 1e9
    multiply-accumulates of a forward pass, `resolution` pixels per side,
    `contract` "12/12 passed", or None before the contract tests have run.

  Raises:
    UserError: unknown family.
  """
  seen = contract()
  out = []
  for name in names() if family is None else [family]:
    module = _family(name)
    for shown in presented(module):
      params, macs = params_and_macs(shown)
      row = (name, shown.variant, params, macs / 1e9, shown.image[0])
      row += (module.PAPER, module.FIDELITY, verdict(seen, name))
      out.append(dict(zip(COLUMNS, row)))
  return out


_family = family  # `rows` has an argument of that name


def contract() -> dict[str, Any]:
  """What the contract tests wrote, or nothing.

  `{"checks": {name: what it holds}, "families": {family: {check: {"result":
  "passed" | "failed" | "absent", "note": ...}}}}`.
  """
  if not CONTRACT.exists():
    return {"checks": {}, "families": {}}
  return json.loads(CONTRACT.read_text())


def verdict(seen: Mapping[str, Any], family: str) -> str | None:
  """ "12/12 passed"; checks a family has no use for don't count."""
  if family not in seen["families"]:
    return None
  results = [check["result"] for check in seen["families"][family].values()]
  of = len(results) - results.count("absent")
  return f"{results.count('passed')}/{of} passed"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The rows for a terminal."""
  return plain.table(rows, COLUMNS)


# -------------------------------------------------------------------- ZOO.md

INTRO = """\
# The zoo

Written by `make zoo`, which runs the contract tests; do not edit. Sizes are
those of the published models (`vitscale models --json` prints the same; each
family file says which options these are) for 1000 classes, toys (`mu`) for 10
classes of grey images. GMACs are billions of multiply-accumulates in the matrix
products of one forward pass; FLOPs are twice that.
"""
MARKS = {"passed": "yes", "failed": "**no**", "absent": "-"}


def markdown() -> str:
  """The text of ZOO.md."""
  heads, body, numeric = plain.cells(rows(), COLUMNS)
  parts = [INTRO, _grid(heads, body, numeric)]
  parts += ["Fidelity:\n", _bullets(FIDELITIES)]
  seen = contract()
  checks, families = seen["checks"], seen["families"]
  parts += ["## What the contract tests saw\n"]
  marks = [
    [name] + [MARKS[results[check]["result"]] for check in checks]
    for name, results in families.items()
  ]
  parts += [_grid(["family", *checks], marks), _bullets(checks)]
  for name, results in families.items():
    notes = {k: r["note"] for k, r in results.items() if r["note"]}
    parts += [f"### {name}\n", _bullets(notes)]
  return "\n".join(parts)


def _grid(
  heads: Sequence[str],
  body: Sequence[Sequence[str]],
  right: Sequence[bool] = (),
) -> str:
  rule = ["---:" if r else "---" for r in right] or ["---"] * len(heads)
  lines = [" | ".join(line) for line in (heads, rule, *body)]
  return "".join(f"| {line} |\n" for line in lines)


def _bullets(items: Mapping[str, str]) -> str:
  return "".join(f"- **{name}**: {text}\n" for name, text in items.items())


def main(argv: Sequence[str] | None = None) -> int:
  """`python -m vitscale.zoo --write`: contract tests, contract.json, ZOO.md."""
  parser = argparse.ArgumentParser(prog="python -m vitscale.zoo")
  parser.add_argument("--write", action="store_true", help="test, then write")
  parser.add_argument(
    "--keep", action="store_true", help="don't run the tests again"
  )
  args = parser.parse_args(argv)
  code = 0
  if args.write and not args.keep:
    tests = ROOT / "tests" / "contract" / "test_families.py"
    if not tests.exists():
      print(f"zoo: there is no {tests}: run this in a clone", file=sys.stderr)
      return 2
    command = [sys.executable, "-m", "pytest", str(tests), "--write-zoo"]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
  if not args.write:
    print(table(rows()))
    return code
  (ROOT / "ZOO.md").write_text(markdown())
  print(f"wrote {ROOT / 'ZOO.md'}")
  return code


if __name__ == "__main__":
  sys.exit(main())
