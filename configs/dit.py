"""DiT on a tokenizer's latents: class-conditional generation (2212.09748).

  vitscale train dit:latents=out/latents --workdir out/dit
  vitscale train dit:latents=out/latents,process=ddpm --workdir out/ddpm
  vitscale train dit:runlocal --workdir /tmp/try     # seconds, tiny pixels
  vitscale sample out/dit --n 64 --cfg 1.5 --out out/samples

Latents as `vitscale encode TOKENIZER --out out/latents` wrote them; they are
normalised channel by channel. `process=flow` is flow matching, `ddpm` the
paper's noise prediction; `model.learn_sigma=True` learns its variance too.

Published recipe (S/2 to XL/2, latents of 32 x 32 x 4): 400k steps of 256, AdamW
1e-4, constant, no weight decay, no warm-up, EMA .9999, labels dropped 10 %.

Hardware: XL/2 is 118.6 GMACs forward a latent, 712 GFLOPs in training.
Time: XL/2 7M steps on a TPU v3-256 at 5.7 steps a second (published).
Score: FID-50K of XL/2 at 400k steps 19.5, without guidance (published; not run
by us).
"""

from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError


def get_config(arg=None):
  """Arguments: latents, variant, process, steps, batch, lr, ema, dtype, scan,
  fsdp (devices that share the parameters)."""
  arg = config_lib.parse_arg(
    arg, latents="", variant="XL/2", process="flow", steps=400_000, batch=256,
    lr=1e-4, ema=0.9999, dtype="bfloat16", scan=False, fsdp=1, runlocal=False,
  )  # fmt: skip
  if not arg.latents and not arg.runlocal:
    raise UserError(
      "dit needs latents: `vitscale encode TOKENIZER --out out/latents`, then"
      " dit:latents=out/latents"
    )
  config = ConfigDict()
  config.seed = 0
  config.batch_size = arg.batch
  config.total_steps = arg.steps
  config.ema = arg.ema
  config.data = {"source": "latents", "path": arg.latents}
  config.train = {"split": "train", "transform": ""}
  config.model = {
    "family": "dit", "variant": arg.variant, "dtype": arg.dtype,
    "scan": arg.scan,
  }  # fmt: skip
  config.task = {"name": "diffuse", "process": arg.process, "drop_label": 0.1}
  config.optim = {
    "name": "adamw", "lr": arg.lr, "b2": 0.999, "weight_decay": 0.0,
    "clip_norm": 1.0, "schedule": {"kind": "constant"},
  }  # fmt: skip
  config.evals = {
    "val": {
      "name": "denoise", "split": "val", "every_percent": 10.0,
      "batch_size": arg.batch,
    },
  }  # fmt: skip
  if arg.fsdp > 1:
    config.mesh = {"fsdp": arg.fsdp}
  config.log = {"every_steps": min(100, arg.steps)}
  config.checkpoint = {"every_percent": 10.0}
  if arg.runlocal:
    config_lib.override(config, ["batch_size=4", "total_steps=3", "ema=0.9"])
    config.data = {"source": "fashion_mnist", "size": 8, "limit": 16}
    config.model.variant, config.model.dtype = "mu/4", "float32"
    config.evals.val.batch_size = 16
  return config
