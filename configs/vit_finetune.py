"""A trained ViT fine-tuned on your own images: new head, slower lower layers.

  vitscale train vit_finetune:from=out/s16,path=photos --workdir out/tuned
  vitscale train vit_finetune:from=out/s16,path=photos,size=384 --workdir ...
  vitscale train vit_finetune:from=out/s16,path=photos,lora=8 --workdir ...
  vitscale train vit_finetune:runlocal,path=photos --workdir /tmp/try  # seconds

FROM is a run or one of its steps. The model is its model; `patch` and `size`
may differ: patch kernels are PI-resized (2212.08013), learned position tables
resampled, and other tables keep counting in FROM's patches. The head is new.
PATH is as in configs/vit_folder.py. Pixels are normalised as FROM's config
says; where it leaves that to its data, as PATH's.

What moves:
- everything, each layer's rate .75 of the next one's (layer_decay, as BEiT,
  2106.08254, and MAE, 2111.06377, appendix A.2; 0 for none);
- all but names that `freeze` fits: freeze=embed/.*|positions/.*;
- low-rank pairs of attention's kernels and the head (lora=8, see
  vitscale/tasks/lora.py), everything else as it was.

Recipe: AdamW, 5 % warm-up and cosine, rate 1e-3 for a batch of 256, decay .05,
label smoothing .1, as MAE fine-tunes; no mixup, cutmix or RandAugment, which
long runs on many images want (task.mixup=0.8, task.cutmix=1.0).

Hardware: as FROM; a LoRA run needs no moments of what is frozen.
Time: images x epochs x FLOPs an image over what your device sustains; LoRA
saves the third of a step that weight gradients are.
Score: depends on FROM and on your images; nobody here ran it on a public set.
"""

from ml_collections import ConfigDict

from vitscale import plugin
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.parent import Parent


def get_config(arg=None):
  """Arguments: from (workdir), path, size (px), patch (px, 0: FROM's), epochs,
  batch, lr, layer_decay, lora (rank), freeze (regex), head (regex)."""
  arg = config_lib.parse_arg(
    arg, **{"from": ""}, path="", size=224, patch=0, epochs=50, batch=256,
    lr=1e-3, layer_decay=0.75, lora=0, freeze="", head="head/.*",
    runlocal=False,
  )  # fmt: skip
  parent = arg["from"]
  if not arg.path or not (parent or arg.runlocal):
    raise UserError(
      "vit_finetune needs a run and a folder of images:"
      " vit_finetune:from=out/s16,path=photos"
    )
  if arg.lora and arg.freeze:
    raise UserError("vit_finetune: lora freezes all but its pairs: drop freeze")
  config = ConfigDict()
  config.seed = 0
  config.batch_size = arg.batch
  config.total_epochs = float(arg.epochs)
  old = Parent(parent).config if parent else {"model": SMALL, "task": {}}
  config.model, size = _model(old, arg), 32 if arg.runlocal else arg.size
  config.data = {
    "source": "folder", "path": arg.path, "val": 0.1, "skip_corrupt": True,
  }  # fmt: skip
  config.train = {
    "split": "train", "transform": f"inception_crop({size})|flip_lr",
  }  # fmt: skip
  config.workers = 0  # processes that decode; as many as there are cores
  config.task = {"name": "classify", "label_smoothing": 0.1}
  seen = old["task"]
  while "of" in seen:  # nested, taught or adapted
    seen = seen["of"]
  for name in ("mean", "std"):
    if name in seen:
      config.task[name] = tuple(seen[name])
  if arg.lora:
    config.task = {
      "name": "lora", "of": config.task, "rank": arg.lora, "train": arg.head,
    }  # fmt: skip
  if parent:
    skip = f"{arg.head}|lora/.*" if arg.lora else arg.head
    config.init = {"from": parent, "how": "resize", "skip": skip}
  config.optim = {
    "name": "adamw",
    "lr": arg.lr,
    "weight_decay": 0.05,
    "clip_norm": 1.0,
    "layer_decay": (arg.layer_decay or None) if not arg.lora else None,
    "freeze": (arg.freeze,) if arg.freeze else (),
    "schedule": {"kind": "cosine", "warmup_percent": 5.0},
  }
  config.evals = {
    "val": {
      "split": "val", "every_percent": 10.0, "batch_size": arg.batch,
      "transform": f"resize_small({size * 8 // 7})|central_crop({size})",
    },
  }  # fmt: skip
  config.log = {"every_steps": 50}
  config.checkpoint = {"every_percent": 10.0}
  if arg.runlocal:
    config_lib.override(config, ["batch_size=4", "total_steps=3"])
    config.evals.val.batch_size = 4
    config.data.limit = 32
  return config


SMALL = {"family": "vit", "variant": "mu/8", "position": "sincos2d"}


def _model(old, arg):
  """The parent's model, at the patch that is asked for."""
  model = dict(old["model"])
  family = plugin.module("models", model["family"])
  known = family.variant(model["variant"]) if model.get("variant") else {}
  before = {**known, **model}.get("patch_size", 16)
  if arg.patch:
    model["patch_size"] = arg.patch
    if model.get("position") in ("sincos2d", "rope2d"):
      model.setdefault("position_patch", before)
  return model
