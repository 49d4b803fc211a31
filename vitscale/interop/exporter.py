"""A run's model as others have it: timm, Hugging Face, or StableHLO.

Each is a folder that says how to run it. timm and Hugging Face get their own
names and a config; StableHLO (`jax.export`) is the program itself, for any
batch, of uint8 images: normalisation is in it.
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitscale import workdir
from vitscale.core import tree
from vitscale.core.errors import UserError, nearest
from vitscale.core.log import read_json, write_json, write_text
from vitscale.interop import hf, mapping, safetensors, timm
from vitscale.interop.mapping import Preprocess
from vitscale.models import vit
from vitscale.tasks.classify import Task, normalised

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
  path: str | Path, out: str | Path, to: str
) -> dict[str, Any]:  # fmt: skip
  """Writes a checkpoint for others.

  Args:
    path: a workdir, its checkpoints/ or a step folder.
    out: folder, new or empty.
    to: key of FORMATS.

  Returns:
    `out`, `to`, `files` (name -> bytes), `params`, `what` it is there.

  Raises:
    UserError: no run, `out` in use, or an option of the model that has no peer
      there (named). Nothing is written.
  """
  out = Path(out).expanduser().absolute()
  if to not in FORMATS:
    raise UserError(f"--to {to!r}{nearest(to, FORMATS)}")
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise UserError(f"{out} exists and is not an empty folder: choose another")
  bench, variables, step = workdir.restored(path)
  task = bench.task
  while hasattr(task, "task"):  # nested or taught
    task = task.task
  if not isinstance(task, Task):
    raise UserError(f"{path} was not trained to classify: it has no peer")
  image = tuple(bench.inputs[1]["image"].shape[1:])
  seen = Preprocess(task.mean, task.std, mapping.share_of(_transform(path)))
  variables = jax.device_get(variables)
  what, files = FORMATS[to](bench.model, variables, seen, image)
  made = None
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    made.chmod(0o755)
    for name, write in files.items():
      write(made / name)
    made.rename(out)
  except OSError as error:
    raise UserError(f"can't write {out}: {error.strerror}") from error
  finally:
    if made is not None:
      shutil.rmtree(made, ignore_errors=True)
  return {
    "out": str(out), "to": to, "what": what, "step": step,
    "params": bench.facts["params"],
    "files": {p.name: p.stat().st_size for p in sorted(out.iterdir())},
  }  # fmt: skip


def _transform(path: str | Path) -> str:
  """What a run does to held-out images."""
  config = read_json(workdir.root(Path(path))[0] / "run.json")["config"]
  groups = [*config.get("evals", {}).values(), config["train"]]
  said = groups[0].get("transform", "")
  return said if isinstance(said, str) else said["image"]


def text(result: Mapping[str, Any]) -> str:
  """The result for a terminal."""
  files = ", ".join(
    f"{name} ({size / 1e6:.3g} MB)" for name, size in result["files"].items()
  )
  return (
    f"{result['what']}, {result['params']} parameters, step"
    f" {result['step']}: {files}\nin {result['out']}"
  )


# ------------------------------------------------------------------- formats

# (model, variables, preprocessing, image) -> what it is there, and its files
# with what writes them.
Files = dict[str, Callable[[Path], None]]
Made = tuple[str, Files]


def _plain(model: nn.Module, to: str) -> None:
  if not isinstance(model, vit.Model):
    family = type(model).__module__.rpartition(".")[2]
    raise UserError(f"--to {to} takes the family vit, not {family!r}")


def to_timm(model: Any, variables: Any, seen: Preprocess, image: Any) -> Made:
  """`timm.create_model("local-dir:OUT", pretrained=True)`."""
  _plain(model, "timm")
  arrays, kwargs = timm.export(variables["params"], model, image)
  h, w, c = image
  config = {
    "architecture": "vit_base_patch16_224",  # all of it is overridden
    "num_classes": model.num_classes,
    "num_features": model.width,
    "global_pool": kwargs["global_pool"],
    "model_args": kwargs,
    "pretrained_cfg": {
      "input_size": [c, h, w], "fixed_input_size": True,
      "num_classes": model.num_classes, "mean": list(seen.mean),
      "std": list(seen.std), "crop_pct": seen.share or 1.0,
      "crop_mode": "squash" if seen.share is None else "center",
      "interpolation": "bilinear",
      "first_conv": "patch_embed.proj", "classifier": "head",
    },
  }  # fmt: skip
  return "timm VisionTransformer", {
    "model.safetensors": lambda path: safetensors.write(
      path, arrays, {"format": "pt"}
    ),
    "config.json": lambda path: write_json(path, config),
  }


def to_hf(model: Any, variables: Any, seen: Preprocess, image: Any) -> Made:
  """`AutoModel....from_pretrained(OUT)`."""
  _plain(model, "hf")
  arrays, config = hf.export(variables["params"], model, image)
  h, w, _ = image
  processor = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True,
    "size": {"height": h, "width": w}, "resample": 2, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": list(seen.mean), "image_std": list(seen.std),
  }  # fmt: skip
  if seen.share is not None:
    processor |= {
      "image_processor_type": "BitImageProcessor", "do_center_crop": True,
      "size": {"shortest_edge": round(h / seen.share)},
      "crop_size": {"height": h, "width": w},
    }  # fmt: skip
  return config["architectures"][0], {
    "model.safetensors": lambda path: safetensors.write(
      path, arrays, {"format": "pt"}
    ),
    "config.json": lambda path: write_json(path, config),
    "preprocessor_config.json": lambda path: write_json(path, processor),
  }


README = """\
# A vision transformer as StableHLO

`model.stablehlo` is a program of `jax.export`, `weights.npz` its parameters.
It takes uint8 images (n, {h}, {w}, {c}), any n, prepared as `{transform}`
does it (RGB), and gives float32 (n, {k}): {what}.
Their normalisation is in the program. `pip install jax flatbuffers numpy`:

    import jax.export, numpy as np
    run = jax.export.deserialize(open("model.stablehlo", "rb").read()).call
    weights = dict(np.load("weights.npz"))
    y = run(weights, np.zeros((3, {h}, {w}, {c}), np.uint8))
"""


def to_stablehlo(
  model: Any, variables: Any, seen: Preprocess, image: Any
) -> Made:
  """Program, weights and a README."""
  if importlib.util.find_spec("flatbuffers") is None:
    raise UserError(
      "--to stablehlo needs the extra: pip install 'vitscale[export]'"
    )
  # The one back end that is nobody's kernel.
  if hasattr(model, "attention"):
    model = model.clone(attention="reference")
  flat = tree.flatten(variables)

  def run(weights, images):
    y, _ = model.apply(
      tree.unflatten(weights), normalised(images, seen.mean, seen.std)
    )
    return y

  (n,) = jax.export.symbolic_shape("n")
  shapes = {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in flat.items()}
  images = jax.ShapeDtypeStruct((n, *image), jnp.uint8)
  made = jax.export.export(jax.jit(run), platforms=PLATFORMS)(shapes, images)
  k = made.out_avals[0].shape[-1]
  what = "logits" if getattr(model, "num_classes", k) else "pooled features"
  h, w, c = image
  says = README.format(
    h=h, w=w, c=c, k=k, what=what, transform=seen.transform(h)
  )
  return "StableHLO", {
    "model.stablehlo": lambda path: path.write_bytes(made.serialize()),
    "weights.npz": lambda path: np.savez(path, **flat),
    "README.md": lambda path: write_text(path, says),
  }


FORMATS: dict[str, Callable[..., Made]] = {
  "timm": to_timm, "hf": to_hf, "stablehlo": to_stablehlo,
}  # fmt: skip
