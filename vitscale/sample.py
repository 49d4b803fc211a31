"""What a generator makes: a grid, arrays, and a page beside its data."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vitscale import tasks, workdir
from vitscale import tokenizer as tokenizer_lib
from vitscale.core.errors import UserError, nearest
from vitscale.core.log import write_json
from vitscale.data import latents, pipeline, sources, transforms
from vitscale.report import page, pictures

SHOWN = 64  # tiles of a sheet of the page


def sample(
  path: str | Path,
  out: str | Path,
  *,
  n: int = 64,
  guidance: float | None = None,
  seed: int = 0,
  labels: Sequence[str] | None = None,
  options: Mapping[str, Any] | None = None,
  tokenizer: str | None = None,
  batch_size: int = 64,
) -> dict[str, Any]:
  """Draws samples of a run and writes them into a new folder.

    samples.npz   image (n, h, w, c) uint8, label (n,), and latent or code
    grid.png      all of them
    report.html   originals, reconstructions if there is a tokenizer, samples
    sample.json   what was asked

  The first samples of a seed don't depend on `n`, but on `batch_size`.

  Args:
    path: a workdir, or a step folder.
    out: the folder.
    n: samples.
    guidance, options: of the task's `sample`.
    seed: of everything that is drawn.
    labels: classes by number or name, in turn; "none" for no class.
    tokenizer: where the tokenizer of the latents is.
    batch_size: samples at once.

  Returns:
    What sample.json says.

  Raises:
    UserError: no generator, bad options, another tokenizer, or a folder with
      other files.
  """
  folder = Path(out).expanduser()
  if folder.exists() and any(folder.iterdir()):
    raise UserError(f"--out {folder} has files: give a new folder")
  for name, value in (("--n", n), ("--batch-size", batch_size)):
    if value < 1:
      raise UserError(f"{name} {value}: should be 1 or more")
  if not 0 <= seed < 2**32:
    raise UserError(f"--seed {seed}: should be in [0, 2^32)")
  bench, variables, step = workdir.restored(path)
  if not hasattr(bench.task, "sample"):
    name = bench.config["task"]["name"]
    raise UserError(
      f"{path} was trained by task {name!r}, which makes nothing: give a run"
      " of diffuse, next_token or next_scale"
    )
  known = tasks.sample_options(bench.task)
  for name in options or {}:
    if name not in known:
      raise UserError(f"--options: no {name!r}{nearest(name, known)}")
  decoder = None
  if bench.source.tokenizer is not None:
    decoder = tokenizer_lib.of(bench.source.tokenizer, tokenizer)
  elif tokenizer is not None:
    raise UserError(
      f"--tokenizer {tokenizer}: {path} makes pixels, not latents"
    )
  label = chosen(labels, bench, n)

  begun, made, key = time.perf_counter(), [], jax.random.key(seed)
  shape = bench.inputs[1]["image"].shape[1:]
  for start in range(0, n, batch_size):
    part = label[start : start + batch_size]
    part = np.pad(part, (0, batch_size - len(part)), mode="edge")
    x = bench.task.sample(
      bench.model, variables, jax.random.fold_in(key, start // batch_size),
      part, shape, guidance=guidance, **(options or {}),
    )  # fmt: skip
    made.append(np.asarray(x)[: n - start])
  x = np.concatenate(made)
  arrays = {"image": x, "label": label}
  if decoder is not None:
    arrays["image"] = np.concatenate([decoder.decode(one) for one in made])
    arrays["latent" if decoder.vocabulary is None else "code"] = x
  result = {
    "checkpoint": str(path), "step": step, "n": n, "guidance": guidance,
    "seed": seed, "batch_size": batch_size, "options": dict(options or {}),
    "labels": labels, "shape": list(arrays["image"].shape[1:]),
    "tokenizer": bench.source.tokenizer and bench.source.tokenizer.path,
    "seconds": time.perf_counter() - begun,
    "page": str(folder / "report.html"),
  }  # fmt: skip
  folder.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(folder / "samples.npz", **arrays)
  pictures.save(folder / "grid.png", pictures.sheet(arrays["image"]))
  sheets = side_by_side(bench, decoder)
  sheets["samples"] = arrays["image"][:SHOWN]
  page.write(
    folder / "report.html",
    title=f"Samples of {path}",
    intro=f"Step {step}, guidance {guidance}, seed {seed}.",
    sections=[
      page.Section(
        name.capitalize(),
        pictures=[
          pictures.Picture(name, name.capitalize(), pictures.sheet(image))
        ],
      )
      for name, image in sheets.items()
    ],
    meta={k: v for k, v in result.items() if k in ("step", "n", "seconds")},
  )
  write_json(folder / "sample.json", result)
  return result


def chosen(labels: Sequence[str] | None, bench: Any, n: int) -> Any:
  """(n,) int32 classes, in turn.

  Raises:
    UserError: a class that the model doesn't know.
  """
  classes = getattr(bench.model, "num_classes", 0)
  names = bench.source.class_names
  if labels is None:
    numbers = range(max(classes, 1))
  elif not classes:
    raise UserError("--labels: the model knows no classes; leave it out")
  else:
    numbers = []
    for one in labels:
      known = [*names, *map(str, range(classes)), "none"]
      if one not in known:
        raise UserError(f"--labels: no class {one!r}{nearest(one, known)}")
      if one == "none":
        numbers.append(classes)
      else:
        numbers.append(names.index(one) if one in names else int(one))
  return np.resize(np.asarray(numbers, np.int32), n)


def side_by_side(
  bench: Any, decoder: Any, count: int = SHOWN
) -> dict[str, Any]:
  """What a page shows before the samples: data, and what decoding keeps.

  Args:
    bench: of the generator.
    decoder: the tokenizer of its latents; None of pixels.
    count: images.

  Returns:
    `originals` and `reconstructions`, each (n, h, w, c) uint8, if there are.
  """
  source = bench.source
  if source.shape is None:
    return {}
  first = source.images(np.arange(min(count, len(source))))
  if decoder is None:
    return {"originals": first}
  return {**originals(bench, count), "reconstructions": decoder.decode(first)}


def originals(bench: Any, count: int) -> dict[str, Any]:
  """The images that the first latents of a run are of, if they are here."""
  data = latents.read_card(Path(bench.config["data"]["path"]))["data"]
  split = dict(bench.config["train"]).get("split", "train")
  try:
    source = sources.make(data["source"], split=split, **data["options"])
  except UserError as error:
    print(f"warning: the page has no originals: {error}", file=sys.stderr)
    return {}
  transform = transforms.parse(data["transform"])
  count = min(count, len(source))
  with pipeline.eval_batches(
    source, batch_size=count, transform=transform
  ) as batches:
    return {"originals": next(batches)["image"]}
