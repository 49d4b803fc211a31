"""ViTok, stage 1: an auto-encoder of your images (2501.09755, section 3.1).

  vitscale train vitok:path=photos --workdir out/tokenizer
  vitscale train vitok:path=photos,patch=8,bottleneck=kl(4) --workdir out/p8
  vitscale train vitok:runlocal --workdir /tmp/try  # seconds, made-up fields
  vitscale plan vitok:path=photos,sizes=L-L,fsdp=16,scan accumulate=8 ...
    --topology v5e:4x4 --classes 1000 --examples 1281167   # the same command

PATH as for vit_folder; classes are not used. E = (size / patch)^2 x floats of a
token: 4,096 with the defaults.

Published recipe: 100k steps of 1,024 images of 256 px, AdamW (.9, .95), weight
decay 1e-4, rate 1e-4 x batch / 256, KL 1e-3 per float, and LPIPS, which wants
a file of its weights (metrics/lpips.py): here the loss is l2 and KL alone, and
with such a file, as overrides,
  task.weights.perceptual=1.0 task.perceptual="lpips(path='FILE', net='vgg')"
Stage 2 is configs/vitok_gan.py.

Hardware: S-B/16 at 256 px is 34.8 GMACs forward an image, so 209 GFLOPs in
training.
Time: 6 to 12 hours on 8 H100 (published, not run by us).
Score: PSNR 26.1 and SSIM .790 on ImageNet with E = 4,096 (published, with
LPIPS, not run by us).
"""

from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError


def get_config(arg=None):
  """Arguments: path, sizes (encoder-decoder), patch, bottleneck, size (px),
  steps, batch, dtype, fsdp (devices that share the parameters), scan."""
  arg = config_lib.parse_arg(
    arg, path="", sizes="S-B", patch=16, bottleneck="kl(16)", size=256,
    steps=100_000, batch=1024, dtype="bfloat16", fsdp=1, scan=False,
    runlocal=False,
  )  # fmt: skip
  if not arg.path and not arg.runlocal:
    raise UserError("vitok needs a folder of images: vitok:path=photos")
  size = 32 if arg.runlocal else arg.size
  config = ConfigDict()
  config.seed = 0
  config.batch_size = arg.batch
  config.total_steps = arg.steps
  config.data = {
    "source": "folder", "path": arg.path, "val": 0.1, "skip_corrupt": True,
  }  # fmt: skip
  config.train = {
    "split": "train", "transform": f"inception_crop({size})|flip_lr",
  }  # fmt: skip
  config.workers = 0  # processes that decode; as many as there are cores
  config.model = {
    "family": "vitok", "variant": f"{arg.sizes}/{arg.patch}",
    "bottleneck": arg.bottleneck, "dtype": arg.dtype, "scan": arg.scan,
  }  # fmt: skip
  config.task = {"name": "reconstruct", "weights": {"l2": 1.0, "kl": 1e-3}}
  config.optim = {
    "name": "adamw",
    "lr": 1e-4 * arg.batch / 256,
    "b2": 0.95,
    "weight_decay": 1e-4,
    "clip_norm": 1.0,
    "schedule": {"kind": "cosine", "warmup_percent": 3.0},
  }
  config.evals = {
    "val": {
      "name": "reconstruction", "split": "val", "every_percent": 10.0,
      "transform": f"resize_small({size})|central_crop({size})",
      "batch_size": arg.batch,
    },
  }  # fmt: skip
  if arg.fsdp > 1:
    config.mesh = {"fsdp": arg.fsdp}
  config.log = {"every_steps": 50}
  config.checkpoint = {"every_percent": 10.0}
  if arg.runlocal:
    config_lib.override(config, ["batch_size=4", "total_steps=3"])
    config.data = {"source": "fields", "size": size, "n": 32, "channels": 3}
    config.train.transform = "flip_lr"
    config.model.variant, config.model.dtype = "mu/8", "float32"
    config.evals.val.batch_size = 4
  return config
