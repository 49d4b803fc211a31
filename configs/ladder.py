"""A compute ladder: eleven ViTs, each ten times the FLOPs of the one before.

  vitscale train ladder:flops2e13 --workdir out/ladder/2e13
  vitscale train ladder:rung=flops2e17,path=/data/imagenet21k --workdir out/2e17
  vitscale train ladder:flops2e12,runlocal --workdir /tmp/try     # seconds

Training stops at exactly the rung's FLOPs (`total_flops`: model FLOPs of
forward and backward, counted on the program; rounded to a whole step), so that
runs of any patch or image size are compared at equal compute. Parameters grow
as the square root of compute and so do images seen (the split of Hoffmann et
al., arXiv 2203.15556; an assumption here, and what a law fitted to rungs around
it will correct: give `width=` and `depth=` to leave the diagonal).

Without `path` a rung trains on the embedded Fashion-MNIST at 28 px, patch 4:
right for the first three, which see those 10,000 images up to 110 times; beyond
that they only overfit. With `path` (class folders) it trains at 224 px, patch
16.

| rung | width x depth | body | images, 224 px | hardware | time |
|---|---|---|---|---|---|
| flops2e12 | 32 x 4 | 51 k | 14 k | 2 CPU cores | 1 min |
| flops2e13 | 64 x 4 | 200 k | 49 k | 2 CPU cores | 10 min |
| flops2e14 | 96 x 5 | 559 k | 0.2 M | 2 CPU cores | 1.6 h |
| flops2e15 | 128 x 8 | 1.6 M | 0.8 M | one H100 | 1 min |
| flops2e16 | 192 x 12 | 5.3 M | 2.7 M | one H100 | 4 min |
| flops2e17 | 320 x 12 | 15 M | 10 M | one H100 | 20 min |
| flops2e18 | 512 x 16 | 50 M | 32 M | one H100 | 2 h |
| flops2e19 | 896 x 16 | 154 M | 106 M | 8 H100 | 2 h |
| flops2e20 | 1280 x 26 | 512 M | 324 M | v5p-32 (16 chips) | 15 h |
| flops2e21 | 1792 x 40 | 1.5 G | 1.1 G | v5p-512 (256 chips) | 9.5 h |
| flops2e22 | 2816 x 52 | 5.0 G | 3.4 G | v5p-4096 (2048 chips) | 12 h |

Times are estimates, not measured: 35 GFLOP/s on two cores; an MFU of 5 to 15 %
for the narrow and 30 to 50 % for the wide on accelerators; data that keep up.
Scores: none known; the ladder is there to measure them.
"""

from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.core.errors import UserError, nearest


def _rung(flops, width, depth, heads, batch_size):
  return {
    "flops": flops, "width": width, "depth": depth, "num_heads": heads,
    "batch_size": batch_size, "params": body(width, depth),
  }  # fmt: skip


def body(width: int, depth: int) -> int:
  """Parameters without patch kernel and classes: blocks and last norm."""
  block = 12 * width**2 + 13 * width  # four matrices and their biases, norms
  return depth * block + 2 * width + width  # and the patch embedding's bias


# Heads are 32 wide at the bottom, 64 in the middle, and 128, which TPUs and
# long sequences like, at the top.
LADDER = {
  "flops2e12": _rung(2e12, 32, 4, 1, 64),
  "flops2e13": _rung(2e13, 64, 4, 2, 128),
  "flops2e14": _rung(2e14, 96, 5, 3, 128),
  "flops2e15": _rung(2e15, 128, 8, 2, 256),
  "flops2e16": _rung(2e16, 192, 12, 3, 512),
  "flops2e17": _rung(2e17, 320, 12, 5, 1024),
  "flops2e18": _rung(2e18, 512, 16, 8, 1024),
  "flops2e19": _rung(2e19, 896, 16, 14, 2048),
  "flops2e20": _rung(2e20, 1280, 26, 10, 4096),
  "flops2e21": _rung(2e21, 1792, 40, 14, 4096),
  "flops2e22": _rung(2e22, 2816, 52, 22, 8192),
}


def get_config(arg=None):
  """Arguments: rung (or its bare name first), path, size, patch, width..."""
  if arg and arg.partition(",")[0] in LADDER:
    arg = f"rung={arg}"
  arg = config_lib.parse_arg(
    arg, rung="flops2e12", path="", size=0, patch=0, width=0, depth=0, lr=0.0,
    dtype="", runlocal=False,
  )  # fmt: skip
  if arg.rung not in LADDER:
    raise UserError(
      f"ladder has no rung {arg.rung!r}{nearest(arg.rung, LADDER)}"
    )
  rung = LADDER[arg.rung]
  size = arg.size or (224 if arg.path else 28)
  patch = arg.patch or (16 if arg.path else 4)
  width, depth = arg.width or rung["width"], arg.depth or rung["depth"]
  own = width == rung["width"]
  large = rung["flops"] > 1e18

  config = ConfigDict()
  config.seed = 0
  config.batch_size = rung["batch_size"]
  config.total_flops = rung["flops"]
  config.model = {
    "family": "vit",
    "width": width,
    "depth": depth,
    "mlp_dim": 4 * width,
    "num_heads": rung["num_heads"] if own else max(1, width // 64),
    "patch_size": patch,
    "position": "sincos2d",
    "dtype": arg.dtype or ("bfloat16" if rung["flops"] > 1e15 else "float32"),
    # One compiled layer where compiling forty would take longer than a
    # coffee; recompute what would not fit.
    "scan": large,
    "remat": "save_attention" if large else None,
  }
  config.task = {"name": "classify"}
  config.optim = {
    "name": "adamw",
    # Not tuned: tune the two lowest rungs, then give lr=.
    "lr": arg.lr or 3e-3 * min(1.0, (64 / width) ** 0.5),
    "weight_decay": 0.05,
    "b2": 0.95 if large else 0.99,
    "schedule": {"kind": "cosine", "warmup_percent": 10.0},
  }
  config.evals = {"val": {"split": "val", "every_percent": 10.0}}
  if arg.path:
    config.data = {"source": "folder", "path": arg.path}
    train = f"inception_crop({size})|flip_lr"
    config.evals.val.transform = (
      f"resize_small({size * 8 // 7})|central_crop({size})"
    )
    config.workers = 0 if arg.runlocal else 16
  else:
    config.data = {"source": "fashion_mnist", "size": size}
    train = "random_shift(2)|flip_lr"
    config.evals.test = {"split": "test"}
  config.train = {"split": "train", "transform": train}
  for one in config.evals.values():
    one.batch_size = min(config.batch_size, 512)
  config.law_variables = {"rung": arg.rung}
  config.log = {"every_percent": 1.0}
  config.checkpoint = {"every_percent": 5.0}
  if arg.runlocal:
    _shrink(config)
  return config


def _shrink(config: ConfigDict) -> None:
  """A few steps of a two-layer toy."""
  config_lib.override(config, ["batch_size=8", "total_steps=3"])
  config.model.update({"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 1})
  config.model.update({"patch_size": 7 if config.data.get("size") else 8})
  if config.data.source == "folder":
    config.train.transform = "inception_crop(16)|flip_lr"
    config.evals.val.transform = "resize_small(18)|central_crop(16)"
  config.data.limit = 32
  for one in config.evals.values():
    one.batch_size = 8
