"""Mistakes with meshes on 8 fake devices, through the real command.

`python mistakes.py FOLDER` prints one JSON object: name -> {"code", "err",
"compiled", "wrote"}; test_mistakes.py says what each has to be.
"""

import contextlib
import io
import json
import logging
import sys
import traceback
import warnings
from pathlib import Path

import jax

from tests.runs import complaint
from vitscale import cli
from vitscale.core.errors import UserError

CONFIG = """
from tests import toys


def get_config(arg=None):
  config = toys.config()
  config.total_steps = 1
  config.mesh = {"fsdp": -1}
  {more}
  return config
"""
# A family of the user's: flat pixels, one matrix, one constraint or none.
FAMILY = """
import flax.linen as nn

from vitscale.core import axes, sharding


class Model(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, image, *, train=False):
    x = image.reshape(len(image), -1)
    kernel = axes.param(
      self, "kernel", "{spec}", (x.shape[1], self.num_classes), axes.lecun
    )
    x = {constraint}
    return x @ kernel, {{"features": [(image, (1, 1))]}}
"""
FAMILIES = {
  "sound": ("patch -> classes", "sharding.constrain(x, 'batch', 'patch')"),
  "bare": ("patch -> classes", "x"),
  "misnamed": ("patch -> classes", "sharding.constrain(x, 'batch', 'pach')"),
  "misspelt": ("patch -> clases", "sharding.constrain(x, 'batch', 'patch')"),
}
VIT = "config.model.width, config.model.mlp_dim = 132, 264"  # above SMALL


def family(name: str) -> str:
  return f"config.model = {{'family': 'families.{name}'}}"


# name -> (line of the config, overrides)
CASES: dict[str, tuple[str, list[str]]] = {
  "fine": (family("sound"), []),
  "activation_name": (family("misnamed"), []),
  "parameter_name": (family("misspelt"), []),
  "no_constraints": (family("bare"), []),
  "idle_axis": (family("sound"), ["mesh.fsdp=4", "mesh.tensor=2"]),
  "rule": ("config.rules = {'params': {'expert': 'fsdp'}}", []),
  "activation_rule": ("config.rules = {'activations': {'code': 'fsdp'}}", []),
  "parameter": (VIT, []),
  "activation": ("", ["mesh.fsdp=2", "mesh.tensor=4"]),
  "batch": ("", ["batch_size=20"]),
  "microbatches": ("config.accumulate = 4", []),
  "eval_batch": ("", ["evals.val.batch_size=20"]),
  "mesh_axis": ("config.mesh = {'fspd': -1}", []),
  "world": ("config.mesh = {'replica': 3, 'fsdp': 2, 'tensor': 4}", []),
}
AROUND = {
  "old_context": lambda: jax.make_mesh(
    (8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)
  ),
  "explicit": lambda: jax.set_mesh(
    jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Explicit,))
  ),
}
# A model that is called without any of this package around it.
ALONE = "a_model_in_an_old_context"


class Compiled(logging.Handler):
  """Names of the programs that were compiled."""

  def __init__(self):
    super().__init__()
    self.names: list[str] = []

  def emit(self, record):
    text = record.getMessage()
    if text.startswith("Compiling "):
      self.names.append(text.split()[1])


def command(folder: Path, name: str, line: str, overrides: list[str]) -> dict:
  config, workdir = folder / f"{name}.py", folder / name
  config.write_text(CONFIG.replace("{more}", line or "pass"))
  handler, err = Compiled(), io.StringIO()
  for logger in ("jax._src.interpreters.pxla", "jax._src.dispatch"):
    logging.getLogger(logger).addHandler(handler)
  try:
    with contextlib.redirect_stderr(err), jax.log_compiles():
      argv = ["train", str(config), "--workdir", str(workdir), *overrides]
      code = cli.main(argv)
  except Exception:
    return {"code": None, "err": traceback.format_exc()}
  finally:
    for logger in ("jax._src.interpreters.pxla", "jax._src.dispatch"):
      logging.getLogger(logger).removeHandler(handler)
  wrote = sorted(p.name for p in workdir.glob("*") if p.name != ".lock")
  said = err.getvalue()
  return {
    "code": code,
    "err": complaint(said) if code else said,
    "compiled": [n for n in handler.names if "step" in n or "init" in n],
    "wrote": wrote,
  }


def alone() -> dict:
  """A model called under `with mesh:`, with no `sharding.use`."""
  import numpy as np

  from vitscale.models import vit

  model = vit.Model(num_classes=3, **vit.variant("mu/4"))
  image = np.zeros((8, 28, 28, 1), np.float32)
  variables = model.init(jax.random.key(0), image)
  try:
    with AROUND["old_context"]():
      jax.jit(model.apply)(variables, image)
  except UserError as error:
    return {"code": 2, "err": str(error), "compiled": [], "wrote": []}
  return {"code": 0, "err": "", "compiled": ["apply"], "wrote": []}


def main(folder: Path) -> None:
  assert jax.device_count() == 8, jax.devices()
  warnings.simplefilter("ignore", DeprecationWarning)
  (folder / "families").mkdir()
  for name, (spec, constraint) in FAMILIES.items():
    text = FAMILY.format(spec=spec, constraint=constraint)
    (folder / "families" / f"{name}.py").write_text(text)
  sys.path.insert(0, str(folder))
  results = {name: command(folder, name, *case) for name, case in CASES.items()}
  for name, enter in AROUND.items():
    with enter():
      results[name] = command(folder, name, "", [])
  results[ALONE] = alone()
  print(json.dumps(results))


if __name__ == "__main__":
  main(Path(sys.argv[1]))
