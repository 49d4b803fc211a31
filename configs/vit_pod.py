"""Large ViTs, and ViTs on pixels, on pods: what to plan before paying.

  vitscale plan vit_pod --topology v5e:16x16
  vitscale plan vit_pod:variant=B/1,batch=512 --topology v5p:8x8x8
  vitscale train vit_pod:path=/data/imagenet --workdir out/g14
  vitscale train vit_pod:path=photos,runlocal --workdir /tmp/try   # seconds

Layers are scanned (one is compiled). Recomputed is all but the products with
weights, or from 2,048 tokens on all but attention: for g/14 on v5e-256 that
takes 7.5 of 15.75 GiB and repeats no product, where keeping attention takes 9.2
and repeats a seventh (`vitscale plan`). Data parallel over everything;
parameters are split over `fsdp` devices and copied `replica` times, so that any
number of devices that `fsdp` divides will do. Two slices are two replicas.
Eight pieces leave every published width in whole tiles of 16 rows (1408 = 8 x
176); of 128 pieces, 11 rows each, the TPU compiler pads gradients to 16 and
moves them about.

| arguments | hardware | time |
|---|---|---|
| variant=g/14 | v5e-256, or 2 x v5e-256 | `vitscale plan` bounds it |
| variant=B/1,batch=512 | v5p-1024 (512 chips) | `vitscale plan` bounds it |

B/1 at 224 px has 50,176 tokens an image and heads of 128 instead of 64, which
long sequences prefer (1.57 against 1.28 images/s on an H100, measured for this
step with the same width).

Score: not run by us. g/14 is the shape of Zhai et al., "Scaling vision
transformers", arXiv 2106.04560, who trained it on JFT-3B and then fine-tuned
(ImageNet top-1 90.45 for G/14); from scratch on ImageNet-1k it overfits. Pixels
as tokens: Nguyen et al., "An image is worth more than 16x16 patches", arXiv
2406.09415.
"""

from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.nn.attention import LONG

# For `vitscale plan`, which needs no images.
DATA = {"classes": 1000, "examples": 1_281_167}


def get_config(arg=None):
  """Arguments: path, variant, size (px), batch, epochs, fsdp, remat."""
  arg = config_lib.parse_arg(
    arg, path="data/imagenet", variant="g/14", size=224, batch=4096, epochs=90,
    fsdp=8, remat="", runlocal=False,
  )  # fmt: skip
  size, variant = arg.size, arg.variant
  if arg.runlocal:
    size, variant = 32, "mu/8"
  tokens = (size // int(variant.partition("/")[2])) ** 2
  config = ConfigDict()
  config.seed = 0
  config.batch_size = arg.batch
  config.total_epochs = float(arg.epochs)
  config.data = {"source": "folder", "path": arg.path}
  config.train = {
    "split": "train",
    "transform": f"inception_crop({size})|flip_lr|randaug(2, 10)",
  }
  config.workers = 0 if arg.runlocal else 16
  config.mesh = {
    "replica": -1,
    "fsdp": 1 if arg.runlocal else arg.fsdp,
  }
  config.model = {
    "family": "vit", "variant": variant, "pool": "mean",
    "position": "sincos2d", "dtype": "bfloat16", "scan": True,
    "remat": arg.remat or ("dots" if tokens < LONG else "save_attention"),
  }  # fmt: skip
  if variant == "B/1":
    config.model.num_heads = 6
  config.task = {"name": "classify", "mixup": 0.2}
  config.optim = {
    "name": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.1,
    "b2": 0.95,
    "clip_norm": 1.0,
    "schedule": {"kind": "cosine", "warmup_percent": 5.0},
  }
  config.evals = {
    "val": {
      "split": "val",
      "transform": f"resize_small({size * 8 // 7})|central_crop({size})",
      "every_epochs": 5.0,
      "batch_size": config.batch_size,
    }
  }
  config.log = {"every_steps": 50}
  config.checkpoint = {"every_steps": 1000}
  if arg.runlocal:
    config_lib.override(
      config, ["batch_size=4", "total_steps=3", "evals.val.every_steps=3"]
    )
    config.evals.val.batch_size = 4
    config.data.limit = 32
  return config
