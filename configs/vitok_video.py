"""ViTok of videos, stage 1: clips in, tubelets out (2501.09755, section 4.4).

  vitscale train vitok_video:path=clips --workdir out/tokenizer
  vitscale train vitok_video:path=clips,tubelet=8,stride=2 --workdir out/q8
  vitscale train vitok_video:runlocal --workdir /tmp/try  # seconds, made up

PATH as in data/video.py: video files (with PyAV: pip install
'vitscale[video]') or folders of frames; classes are not used. A clip of 16
frames starts anywhere in the first `window` of a video; evaluation takes the
first 16. S-B/4x8 on 16 x 128 x 128: 1,024 tokens, E = 16,384.

Published recipe: 100k steps of 256 videos, the rest as in vitok.py; the
release weighs KL by 1e-3 x 4,096 / E per float, here 2.5e-4.

Hardware: S-B/4x8 is 161 GMACs forward a clip, 965 GFLOPs in training. On CPUs,
dtype=float32, a step peaks at 3.8 GiB of memory with batch=1, 5.2 with 2.
Time: not stated by the paper, not run by us.
Score: PSNR 30.1 and SSIM .923 on UCF-101 at 16 x 128 x 128 (published, with
LPIPS and stage 2, not run by us).
"""

from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError


def get_config(arg=None):
  """Arguments: path, sizes (encoder-decoder), tubelet, patch, bottleneck,
  frames, stride, window (frames that clips are drawn from), size (px), steps,
  kl (weight per float), batch, dtype, remat, fsdp (devices that share the
  parameters), scan."""
  arg = config_lib.parse_arg(
    arg, path="", sizes="S-B", tubelet=4, patch=8, bottleneck="kl(16)",
    frames=16, stride=1, window=64, size=128, steps=100_000, kl=2.5e-4,
    batch=256, dtype="bfloat16", remat="", fsdp=1, scan=False, runlocal=False,
  )  # fmt: skip
  if not arg.path and not arg.runlocal:
    raise UserError("vitok_video needs videos: vitok_video:path=clips")
  config = ConfigDict()
  config.seed = 0
  config.batch_size = arg.batch
  config.total_steps = arg.steps
  config.data = {
    "source": "video", "path": arg.path, "frames": arg.frames,
    "stride": arg.stride, "window": max(arg.window, arg.frames),
    "size": arg.size, "val": 0.1, "skip_corrupt": True,
  }  # fmt: skip
  config.train = {
    "split": "train", "transform": f"random_frames({arg.frames})|flip_lr",
  }  # fmt: skip
  config.workers = 0  # processes that decode; as many as there are cores
  config.model = {
    "family": "vitok", "variant": f"{arg.sizes}/{arg.tubelet}x{arg.patch}",
    "bottleneck": arg.bottleneck, "dtype": arg.dtype, "scan": arg.scan,
    "remat": arg.remat or None,
  }  # fmt: skip
  config.task = {"name": "reconstruct", "weights": {"l2": 1.0, "kl": arg.kl}}
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
      "data": {"window": arg.frames}, "batch_size": arg.batch, "rfd": False,
    },
  }  # fmt: skip
  if arg.fsdp > 1:
    config.mesh = {"fsdp": arg.fsdp}
  config.log = {"every_steps": 50}
  config.checkpoint = {"every_percent": 10.0}
  if arg.runlocal:
    config_lib.override(config, ["batch_size=4", "total_steps=3"])
    config.data = {
      "source": "moving_fields", "size": 16, "n": 16, "frames": 8,
      "channels": 3,
    }  # fmt: skip
    config.train.transform = "random_frames(4)|flip_lr"
    config.model.variant, config.model.dtype = "mu/2x8", "float32"
    config.evals.val.data = {"frames": 4}
    config.evals.val.batch_size = 4
  return config
