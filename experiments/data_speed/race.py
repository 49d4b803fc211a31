"""Images a second of JPEG decoding, RandomResizedCrop and flip, on one core.

    python experiments/data_speed/race.py --folder photos --rounds 9

Contestants run in turns in one process, each on one thread, in another order
every round. Without --folder the images are noise of a photograph's spectrum,
of 500 x 375 pixels and about 100 kB, much like ImageNet's. What is counted is
CPU time, as it says more on a machine that does something else too; a ratio's
interval is over rounds, of which the first is left out.
"""

import argparse
import io
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import stats

from vitscale.core.errors import UserError
from vitscale.data import transforms
from vitscale.data.image_file import ImageFile
from vitscale.data.random import Rng

SIZE, AREA = 224, 0.08
Contestant = Callable[[Sequence[bytes]], np.ndarray]


def ours(more: str = "") -> Contestant:
  """What the input pipeline does to a batch."""
  transform = transforms.parse(f"inception_crop({SIZE}, {AREA}{more})|flip_lr")
  epoch = iter(range(2**30))

  def load(batch: Sequence[bytes]) -> np.ndarray:
    image = [ImageFile(data, 3, "") for data in batch]
    rng = Rng(0, next(epoch), np.arange(len(batch)))
    return transform({"image": image}, rng)["image"]

  return load


def by_hand() -> Contestant:
  """Pillow alone, no more than has to be done."""
  rng = random.Random(0)

  def one(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    w, h = image.size
    while True:
      area = rng.uniform(AREA, 1) * w * h
      aspect = (4 / 3) ** rng.uniform(-1, 1)
      wide, high = (area * aspect) ** 0.5, (area / aspect) ** 0.5
      if wide <= w and high <= h:
        break
    left, top = rng.uniform(0, w - wide), rng.uniform(0, h - high)
    box = (left, top, left + wide, top + high)
    image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5:
      image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)

  return lambda batch: np.stack([one(data) for data in batch])


def torchvision_pillow() -> Contestant:
  """torchvision's usual pipeline: Pillow decodes, crops and resizes."""
  import torch
  from torchvision.transforms import v2

  transform = v2.Compose([
    v2.RandomResizedCrop(SIZE, scale=(AREA, 1.0)),
    v2.RandomHorizontalFlip(), v2.PILToTensor(),
  ])  # fmt: skip

  def load(batch: Sequence[bytes]) -> np.ndarray:
    images = (Image.open(io.BytesIO(data)).convert("RGB") for data in batch)
    return torch.stack([transform(image) for image in images]).numpy()

  return load


def torchvision_tensors() -> Contestant:
  """torchvision's own JPEG decoder, and its transforms of tensors."""
  import torch
  from torchvision.io import ImageReadMode, decode_jpeg
  from torchvision.transforms import v2

  transform = v2.Compose([
    v2.RandomResizedCrop(SIZE, scale=(AREA, 1.0), antialias=True),
    v2.RandomHorizontalFlip(),
  ])  # fmt: skip

  def one(data: bytes) -> "torch.Tensor":
    coded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return transform(decode_jpeg(coded, ImageReadMode.RGB))

  return lambda batch: torch.stack([one(data) for data in batch]).numpy()


PEERS = {
  "torchvision, Pillow": torchvision_pillow,
  "torchvision, tensors": torchvision_tensors,
}


def contestants() -> dict[str, Contestant]:
  """All that can be imported, by name."""
  found = {
    "ours": ours(),
    "ours, draft": ours(", draft=True"),
    "Pillow by hand": by_hand(),
  }
  try:
    import torch
    import torchvision  # noqa: F401
  except ImportError:
    print("torchvision is missing: pip install torch torchvision")
    return found
  torch.set_num_threads(1)
  return found | {name: build() for name, build in PEERS.items()}


def noise(n: int, height: int = 375, width: int = 500) -> list[bytes]:
  """JPEGs of colour noise whose amplitude falls with frequency."""
  rng = np.random.default_rng(0)
  fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
  fall = 1 / np.maximum(np.hypot(fy, fx), 1 / width) ** 1.2
  found = []
  for _ in range(n):
    grey, colour = (
      np.fft.irfft2(
        fall * np.fft.rfft2(rng.standard_normal((c, height, width))),
        (height, width),
      )
      for c in (1, 3)
    )
    image = np.moveaxis(grey / grey.std() + 0.3 * colour / colour.std(), 0, 2)
    image = np.clip(128 + 55 * image, 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=90)
    found.append(out.getvalue())
  return found


def photographs(root: Path, n: int) -> list[bytes]:
  """The first JPEGs below a folder."""
  files = sorted(
    p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")
  )
  if not files:
    raise UserError(f"--folder {root} holds no .jpg")
  return [file.read_bytes() for file in files[:n]]


def timed(
  entries: dict[str, Contestant], images: Sequence[bytes], rounds: int,
  batch: int,
) -> dict[str, list[float]]:  # fmt: skip
  """CPU seconds an image, of each contestant and round."""
  taken: dict[str, list[float]] = {name: [] for name in entries}
  order, rng = list(entries), random.Random(0)
  for k in range(rounds + 1):
    rng.shuffle(order)
    for name in order:
      start = time.process_time()
      for i in range(0, len(images), batch):
        made = entries[name](images[i : i + batch])
        assert made.dtype == np.uint8 and SIZE in made.shape[1:3]
      if k:
        taken[name].append((time.process_time() - start) / len(images))
  return taken


def ratio(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
  """Of images a second, a over b: mean and 95 % interval, of the logarithms."""
  logs = np.log(b) - np.log(a)
  half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
  return tuple(float(np.exp(logs.mean() + x)) for x in (0, -half, half))


def verdict(low: float, high: float) -> str:
  """On "ours is at least as quick"."""
  return "holds" if low >= 1 else "fails" if high < 1 else "inconclusive"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--folder", type=Path, help="of JPEGs")
  parser.add_argument(
    "--size", type=int, nargs=2, default=(375, 500), metavar=("H", "W"),
    help="of the noise",
  )  # fmt: skip
  parser.add_argument("--images", type=int, default=128)
  parser.add_argument("--rounds", type=int, default=9)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--json", type=Path, help="file to write")
  args = parser.parse_args()
  if min(args.images, args.batch) < 1 or args.rounds < 2:
    parser.error("--images and --batch are at least 1, --rounds 2")
  images = (
    photographs(args.folder, args.images)
    if args.folder
    else noise(args.images, *args.size)
  )
  size = np.mean([len(data) for data in images]) / 1000
  print(f"{len(images)} images, {size:.0f} kB on average, {args.rounds} rounds")
  taken = timed(contestants(), images, args.rounds, args.batch)
  result = {"images": len(images), "kilobytes": size, "seconds": taken}
  for name, seconds in taken.items():
    print(f"{name:22} {1 / np.mean(seconds):7.1f} images a CPU second")
  for name, seconds in taken.items():
    if not name.startswith("ours"):
      mean, low, high = ratio(taken["ours"], seconds)
      said = verdict(low, high)
      result[name] = {"ratio": mean, "low": low, "high": high, "verdict": said}
      print(f"ours over {name}: {mean:.3f} ({low:.3f} to {high:.3f}): {said}")
  if args.json:
    args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  main()
