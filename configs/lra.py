"""The Long Range Arena: frozen models, any token mixer (Tay et al. 2011.04006).

  vitscale train lra:listops --workdir out/listops                # generated
  vitscale train "lra:listops,mixer=linear()" --workdir out/linear
  vitscale train "lra:pathfinder,path=DIR,mixer=window(16)" --workdir out/path
  vitscale train lra:listops,masked --workdir out/spt             # then
  vitscale train lra:listops --workdir out/tuned init.from=out/spt \\
    "init.skip=head/.*|masked/.*"
  vitscale train lra:runlocal --workdir /tmp/try     # seconds

| task | length | layers x width, heads x head_dim, hidden | data |
|---|---|---|---|
| listops | 2000 | 4 x 512, 8 x 64, 1024 | generated, or basic_*.tsv |
| text | 1000 | 4 x 256, 4 x 64, 1024 | path: aclImdb |
| retrieval | 2 x 4000 | 4 x 128, 4 x 32, 512 | path: new_aan_pairs.*.tsv |
| image | 1024 | 1 x 128, 8 x 8, 128 | path: cifar-10-batches-py or -bin |
| pathfinder | 1024 | 4 x 32, 4 x 4, 32 | generated, or the released folder |
| pathx | 16384 | 1 x 32, 2 x 8, 32 | generated, or the released folder |
| pathx256 | 65536 | 2 x 32, 4 x 8, 32 | generated, or the released folder |

Sizes, steps, rates, decay, dropout and pooling are those of the released base
configs. Their rule is kept: a mixer's model may have 10 % more parameters than
the base with softmax, and is refused otherwise. Pictures are sequences of one
row whose 256 grey levels are looked up. Other than there: Pre-norm blocks of
this bench; no dropout of attention weights; one linear layer classifies (there
a hidden one comes before, but for retrieval, which has it here too); black
pixels are attended to (there a token 0 is padding, in pictures too); the last
token of the table is the mask of self-pretraining and does nothing else.

Hardware: one GPU. Time: generating 96,000 expressions takes half a minute,
160,000 pictures of 32 px six minutes; training was not timed.
Score: not run by us. Published test accuracy of the Transformer: listops 36.37,
text 64.27, retrieval 57.46, image 42.44, pathfinder 71.40 %, pathx at chance
(more in experiments/lra/expected.json); with self-pretraining far higher
(2310.02980, other sizes).
"""

import math
import re

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError, nearest
from vitscale.data import listops
from vitscale.models import vit

ROOM = 1.1  # parameters that a mixer's model may have, of the base's


def _model(depth, width, heads, qkv, mlp, pool, dropout, position="sincos1d"):
  return {
    "family": "vit", "width": width, "depth": depth, "mlp_dim": mlp,
    "num_heads": heads, "head_dim": qkv // heads, "patch_size": 1,
    "pool": pool, "dropout": dropout, "position": position, "bias": True,
  }  # fmt: skip


MODELS = {
  "listops": _model(4, 512, 8, 512, 1024, "cls", 0.1),
  "text": _model(4, 256, 4, 256, 1024, "cls", 0.1),
  "retrieval": _model(4, 128, 4, 128, 512, "cls", 0.1),
  "image": _model(1, 128, 8, 64, 128, "cls", 0.3, "learned"),
  "pathfinder": _model(4, 32, 4, 16, 32, "mean", 0.2),
  "pathx": _model(1, 32, 2, 16, 32, "mean", 0.1, "learned"),
  "pathx256": _model(2, 32, 4, 32, 32, "cls", 0.1, "learned"),
}
# Examples of a batch, duration, peak rate, warm-up, decay of weights.
TRAINING = {
  "listops": (32, {"total_steps": 5000}, 0.05 / 1000**0.5, 1000, 0.1),
  "text": (32, {"total_steps": 20_000}, 0.05 / 8000**0.5, 8000, 0.1),
  # Warm-up takes 8,000 steps there, of which the run sees 5,000.
  "retrieval": (
    32, {"total_steps": 5000}, 0.05 / 8000**0.5 * 5 / 8, 5000, 0.1
  ),
  "image": (256, {"total_epochs": 200.0}, 5e-4, 175, 0.0),
  "pathfinder": (512, {"total_epochs": 200.0}, 1e-3, 312, 0.0),
  "pathx": (64, {"total_epochs": 200.0}, 1e-3, 2500, 0.0),
  "pathx256": (32, {"total_epochs": 100.0}, 1e-3, 5000, 0.0),
}  # fmt: skip
SIDES = {"image": 32, "pathfinder": 32, "pathx": 128, "pathx256": 256}
LENGTHS = {"listops": 2000, "text": 1000, "retrieval": 4000}
CLASSES = {"listops": 10, "image": 10}  # of the others 2


def get_config(arg=None):
  """Arguments: task (or its bare name first), mixer, path, length, masked."""
  mixer, rest = _mixer(arg or "")
  if rest.partition(",")[0] in MODELS:
    rest = f"task={rest}"
  arg = config_lib.parse_arg(
    rest, task="listops", mixer=mixer, path="", length=0, masked=False,
    runlocal=False,
  )  # fmt: skip
  task = arg.task
  if task not in MODELS:
    raise UserError(f"lra has no task {task!r}{nearest(task, MODELS)}")
  if arg.length and task not in LENGTHS:
    raise UserError(f"lra:{task} is of {SIDES[task]} px: drop length=")
  length = arg.length or LENGTHS.get(task) or SIDES[task] ** 2

  config = ConfigDict()
  config.seed = 0
  batch, duration, lr, warmup, decay = TRAINING[task]
  config.batch_size = batch
  config.update(duration)
  config.data = _data(task, arg.path, length)
  picture = task in SIDES
  transform = "flatten" if picture else ""
  config.train = {"split": "train", "transform": transform}
  config.model = {
    **MODELS[task],
    # One more than there are: the mask of self-pretraining.
    "vocabulary": (listops.VOCABULARY if task == "listops" else 256) + 1,
    "pad_token": None if picture else 0,
    "mixer": arg.mixer,
  }
  if task == "retrieval":
    config.model.num_classes = 0
  if arg.masked:
    share = 0.5 if picture else 0.15
    config.task = {"name": "masked", "share": share}
  elif task == "retrieval":
    config.task = {"name": "pairs", "hidden": config.model.mlp_dim}
  else:
    config.task = {"name": "classify"}
  if arg.masked and task == "retrieval":
    raise UserError(
      "lra:retrieval,masked: an image holds two sequences, which task masked"
      " would take for one picture; there is no self-pretraining of it here"
    )
  # Pixels are tokens: normalising must leave them what they are.
  config.task.update({"mean": (0.0,), "std": (1 / 255,)})
  rsqrt = decay > 0 and task != "retrieval"
  config.optim = {
    "name": "adamw", "lr": lr, "weight_decay": decay, "b1": 0.9, "b2": 0.98,
    "eps": 1e-9,
    "schedule": {
      "kind": "rsqrt" if rsqrt else "constant" if decay else "cosine",
      "warmup_steps": warmup,
    },
  }  # fmt: skip
  if task == "pathx":
    config.optim.clip_norm = 1.0
  evaluate = {"batch_size": min(batch, 64), "transform": transform}
  config.evals = {"val": {**evaluate, "split": "val", "every_percent": 10.0}}
  if not arg.masked:  # looked at once, at the end
    config.evals.test = {**evaluate, "split": "test"}
  if config.data.source == "pathfinder":
    for one in config.evals.values():
      one.data = {"n": 20_000}
  config.log = {"every_percent": 1.0}
  config.checkpoint = {"every_percent": 10.0}
  config.name = f"lra:{task}"
  if arg.runlocal:
    _shrink(config)
  return config


def check(config: ConfigDict) -> None:
  """The arena's rule, for what overrides have made of a config."""
  task, data = config.name.removeprefix("lra:"), config.data
  side = data.get("size") or SIDES.get(task, 0)
  length = data.get("length") or data.get("max_length") or side**2
  check_size(config.model, (1, length, 1), CLASSES.get(task, 2))


def _mixer(arg: str) -> tuple[str, str]:
  """`"text,mixer=performer(64, seed=1)"` -> (the mixer, the rest)."""
  found = re.search(r"(?:^|,)mixer=(\w+\([^)]*\))", arg)
  if not found:
    return "softmax", arg
  rest = arg[: found.start()] + arg[found.end() :]
  if "mixer=" in rest:
    raise UserError("config argument 'mixer' is given twice")
  return found[1], rest.strip(",")


def _data(task: str, path: str, length: int) -> dict:
  """The data group of a config; generated where no path is given."""
  sequence = {"path": path, "length": length}
  if task in ("text", "retrieval", "image") and not path:
    raise UserError(f"lra:{task} reads files: lra:{task},path=FOLDER")
  if task == "listops":
    if path:
      return {"source": "lra_listops", **sequence}
    shortest = 500 if length == 2000 else length // 4
    return {
      "source": "listops", "min_length": shortest, "max_length": length
    }  # fmt: skip
  if task in LENGTHS:
    return {"source": f"lra_{task}", **sequence}
  if task == "image":
    return {"source": "lra_image", "path": path}
  if path:
    return {"source": "lra_pathfinder", "path": path}
  return {"source": "pathfinder", "size": SIDES[task], "n": 160_000}


def _shrink(config: ConfigDict) -> None:
  """A few steps of a small model on what is quickly made."""
  config_lib.override(config, ["batch_size=8", "total_steps=4"])
  config.optim.schedule.warmup_steps = 1
  config.model.update(
    {"width": 32, "depth": 1, "mlp_dim": 32, "num_heads": 2, "head_dim": 16}
  )
  if config.task.name == "pairs":
    config.task.hidden = 32
  if config.data.source == "listops":
    config.data.update({"min_length": 10, "max_length": 60, "n": 64})
  elif config.data.source == "pathfinder":
    config.data.update({"size": 16, "n": 64, "paddles": 4, "distractors": 1})
  elif "length" in config.data:
    config.data.length = min(config.data.length, 64)
  for one in config.evals.values():
    one.batch_size = 16
    if "n" in config.data:
      one.data = {"n": 64}
  config.data.limit = 64


def parameters(model, image: tuple[int, int, int], classes: int) -> int:
  """Of a model on images of a shape."""
  options = {"num_classes": classes, **model}
  options.pop("family")
  made = vit.Model(**options)
  shapes = jax.eval_shape(
    made.init, jax.random.key(0), jnp.zeros((1, *image), jnp.float32)
  )
  return sum(math.prod(x.shape) for x in jax.tree.leaves(shapes["params"]))


def check_size(model, image: tuple[int, int, int], classes: int) -> None:
  """The arena's rule: at most 10 % more parameters than the base.

  Args:
    model: the config's group, as a mapping.
    image: (rows, columns, channels).
    classes: logits, unless `model` says another number.

  Raises:
    UserError: more, with both counts.
  """
  model = dict(model)
  if model["mixer"] == "softmax":
    return
  mine = parameters(model, image, classes)
  base = parameters({**model, "mixer": "softmax"}, image, classes)
  if mine > ROOM * base:
    raise UserError(
      f"lra: mixer {model['mixer']!r} has {mine:,} parameters, the base"
      f" {base:,}: the arena allows 10 % more, {int(ROOM * base):,}"
    )
