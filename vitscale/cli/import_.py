"""`vitscale import` on the command line: its options, and what they mean."""

import argparse
from typing import Any

EXAMPLE = "import dinov2-small/ --out out/dinov2 --size 224"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "path", metavar="PATH",
    help="file or folder: .safetensors, .npz, .bin, .pth, with config.json and"
    " preprocessor_config.json beside it where there are any",
  )  # fmt: skip
  parser.add_argument("--out", required=True, help="workdir, new")
  parser.add_argument(
    "--patch", type=int, metavar="P",
    help="another patch size: the kernel is PI-resized",
  )  # fmt: skip
  parser.add_argument(
    "--size", type=int, metavar="PX",
    help="of square images; positions are resampled",
  )  # fmt: skip
  parser.add_argument(
    "--classes", type=int, metavar="N",
    help="a new head, all zeros, where there is none; 0 drops the head",
  )  # fmt: skip
  parser.add_argument(
    "--trust", action="store_true",
    help="read torch's pickles (tensors alone: nothing in them is run)",
  )  # fmt: skip
  parser.add_argument(
    "overrides", nargs="*", metavar="key=value",
    help="of the config: data.source=folder data.path=DIR, model.num_heads=6",
  )  # fmt: skip


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Makes a workdir of a checkpoint of timm, Hugging Face or big_vision.

  ViT, DeiT, DINOv2, SigLIP's image tower, MAE's encoder. What comes out is
  like the workdir of any run; preprocessing comes along.
  """
  from vitscale.interop import importer

  result = importer.bring(
    args.path, args.out, patch=args.patch, size=args.size,
    classes=args.classes, overrides=args.overrides, trust=args.trust,
  )  # fmt: skip
  if not args.json:
    print(importer.text(result))
  return result, 0
