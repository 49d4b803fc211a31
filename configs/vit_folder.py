"""ViT on your own images, one folder per class.

  vitscale train vit_folder:path=photos --workdir out/photos
  vitscale train vit_folder:path=photos,variant=Ti/8,size=96 --workdir out/small
  vitscale train vit_folder:path=photos,runlocal --workdir /tmp/try  # seconds

PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg, of which
a tenth of each class is then held out. All files are looked at first; those
that can't be read are listed and left out. `data.skip_corrupt=False` starts at
once and stops at the first such file.

Hardware: S/16 at 224 px wants a GPU (4.6 GMACs forward an image, so 28 GFLOPs
an image in training); Ti/8 at 64 px runs on a CPU.
Time: images x epochs x FLOPs an image over what your device sustains.
Score: depends on your images; nobody here ran it on a public set. From
scratch, some 100,000 images are needed before a ViT shows what it can do.
"""

from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError


def get_config(arg=None):
  """Arguments: path (needed), variant, size (px), epochs, batch, lr."""
  arg = config_lib.parse_arg(
    arg, path="", variant="S/16", size=224, epochs=90, batch=256, lr=1e-3,
    dtype="float32", runlocal=False,
  )  # fmt: skip
  if not arg.path:
    raise UserError(
      "vit_folder needs a folder of images: vit_folder:path=photos"
    )
  size = 32 if arg.runlocal else arg.size
  variant = arg.variant
  if arg.runlocal:
    variant = f"mu/{min(8, int(variant.partition('/')[2] or 8))}"
  config = ConfigDict()
  config.seed = 0
  config.batch_size = arg.batch
  config.total_epochs = float(arg.epochs)
  config.data = {
    "source": "folder", "path": arg.path, "val": 0.1, "skip_corrupt": True,
  }  # fmt: skip
  config.train = {
    "split": "train", "transform": f"inception_crop({size})|flip_lr",
  }  # fmt: skip
  config.workers = 0  # processes that decode; as many as there are cores
  config.model = {
    "family": "vit", "variant": variant, "position": "sincos2d",
    "dtype": arg.dtype,
  }  # fmt: skip
  config.task = {"name": "classify", "label_smoothing": 0.0, "mixup": 0.2}
  config.optim = {
    "name": "adamw",
    "lr": arg.lr,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "schedule": {"kind": "cosine", "warmup_percent": 10.0},
  }
  eval_transform = f"resize_small({size * 8 // 7})|central_crop({size})"
  config.evals = {
    "val": {
      "split": "val", "transform": eval_transform, "every_percent": 10.0,
      "batch_size": arg.batch,
    },
  }  # fmt: skip
  config.log = {"every_steps": 50}
  config.checkpoint = {"every_percent": 10.0}
  if arg.runlocal:
    config_lib.override(config, ["batch_size=4", "total_steps=3"])
    config.evals.val.batch_size = 4
    config.data.limit = 32
  return config
