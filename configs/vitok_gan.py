"""ViTok, stage 2: a decoder whose images look real (2501.09755, section 3.1).

  vitscale train vitok_gan:from=out/tokenizer,path=photos --workdir out/gan
  vitscale train vitok_gan:runlocal --workdir /tmp/try  # seconds, no stage 1

FROM is a run of stage 1 (configs/vitok.py), which says what the model is and
what its reconstruction is scored by; of its images, say the same `size`. The
encoder and what it makes of images stay as they are, so that latents are those
of stage 1.

Published recipe: 100k steps of 256 images, rate 1e-4 x batch / 256, AdamW (.9,
.95), averaged weights .9999; a StyleGAN discriminator with a hinge loss of
weight .05 (appendix A.2), at rate 2e-5 after a linear warm-up of 25k steps. R1
and its weight are ours: the paper says nothing of a penalty.

Hardware: S-B/16 at 256 px is 34.8 GMACs forward an image, and it is decoded
twice a step; `vitscale plan` has the discriminator's.
Time: 3 to 6 hours on 8 H100 (published, not run by us).
Score: FID .50, PSNR 24.4 and SSIM .747 of reconstructions on ImageNet with E =
4,096 (published, with LPIPS, not run by us): FID falls and so does PSNR.
"""

from pathlib import Path

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.parent import Parent


def get_config(arg=None):
  """Arguments: from (workdir of stage 1), path, size (px), weight, steps,
  batch, dtype, fsdp (devices that share the parameters), scan."""
  arg = config_lib.parse_arg(
    arg, **{"from": ""}, path="", size=256, weight=0.05, steps=100_000,
    batch=256, dtype="bfloat16", fsdp=1, scan=False, runlocal=False,
  )  # fmt: skip
  parent = arg["from"]
  if not (parent and arg.path) and not arg.runlocal:
    raise UserError(
      "vitok_gan needs a run of stage 1 and its images:"
      " vitok_gan:from=out/tokenizer,path=photos"
    )
  first = config_lib.load_module(Path(__file__).with_name("vitok.py"))
  same = "path", "size", "steps", "batch", "dtype", "fsdp", "scan", "runlocal"
  config = first.get_config(",".join(f"{name}={arg[name]}" for name in same))
  of = config.task
  if parent:
    config.init = {"from": parent, "skip": "discriminator/.*"}
    old = Parent(parent).config
    config.model = {**old["model"], "dtype": config.model.dtype}
    of = old["task"].get("of", old["task"])  # of an earlier stage 2
  config.task = {
    "name": "adversarial", "of": of, "freeze": "encoder",
    "weight": arg.weight, "loss": "hinge",
    "discriminator": "residual(64, 512)", "r1": 1.0, "r1_every": 16,
  }  # fmt: skip
  config.optim_discriminator = {
    **config.optim, "lr": 2e-5, "weight_decay": 0.0,
    "schedule": {"kind": "constant", "warmup_percent": 25.0},
  }  # fmt: skip
  config.ema = 0.9999
  if arg.runlocal:
    config.task.discriminator, config.task.r1_every = "patch(4, 2)", 1
  return config
