"""The same few images in every format that a source reads."""

import csv
import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vitscale.data import array_record, image_file

CLASSES = ("ant", "bee", "cat")
N = 24


def images(n: int = N) -> list[np.ndarray]:
  """Images that tell their own number."""
  rng = np.random.default_rng(0)
  made = rng.integers(0, 256, (n, 9, 7, 3), np.uint8)
  made[:, 0, 0, 0] = np.arange(n)
  return list(made)


def label(n: int = N) -> list[int]:
  return [i % len(CLASSES) for i in range(n)]


def png(image: np.ndarray) -> bytes:
  out = io.BytesIO()
  Image.fromarray(image).save(out, "PNG")
  return out.getvalue()


def files(n: int = N) -> list[bytes]:
  return [png(image) for image in images(n)]


def as_table(root: Path, data: list[bytes], label: list[int]) -> str:
  (root / "pictures").mkdir(parents=True)
  rows = [("path", "label")]
  for i, (file, c) in enumerate(zip(data, label, strict=True)):
    (root / "pictures" / f"{i:02}.png").write_bytes(file)
    rows.append((f"pictures/{i:02}.png", CLASSES[c]))
  with open(root / "labels.csv", "w", newline="") as out:
    csv.writer(out).writerows(rows)
  return str(root)


def as_parquet(
  root: Path, data: list[bytes], label: list[int], *, shards: int = 2,
  struct: bool = True,
) -> str:  # fmt: skip
  import pyarrow as pa
  import pyarrow.parquet

  root.mkdir(parents=True)
  feature = {"names": list(CLASSES), "_type": "ClassLabel"}
  info = {"info": {"features": {"image": {"_type": "Image"}, "label": feature}}}
  cells = [{"bytes": x, "path": None} if struct else x for x in data]
  kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
  step = -(-len(data) // shards)
  for k in range(shards):
    rows = slice(k * step, (k + 1) * step)
    table = pa.table({
      "image": pa.array(cells[rows], kind if struct else pa.binary()),
      "label": pa.array(label[rows], pa.int64()),
    })  # fmt: skip
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    path = root / f"part-{k:05}-of-{shards:05}.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=5)
  return str(root)


def tar(path: Path, members: dict[str, bytes]) -> None:
  with tarfile.open(path, "w") as out:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      out.addfile(info, io.BytesIO(data))


def as_webdataset(
  root: Path, data: list[bytes], label: list[int], *, shards: int = 2
) -> str:
  root.mkdir(parents=True)
  step = -(-len(data) // shards)
  for k in range(shards):
    members = {}
    for i in range(k * step, min((k + 1) * step, len(data))):
      members[f"{i:02}.png"] = data[i]
      members[f"{i:02}.cls"] = CLASSES[label[i]].encode()
    tar(root / f"shard-{k}.tar", members)
  return str(root)


def as_numpy(root: Path, data: list[bytes], label: list[int]) -> str:
  root.mkdir(parents=True)
  arrays = {
    "images": np.stack([image_file.decode(x) for x in data]),
    "labels": np.array(label),
    "class_names": np.array(CLASSES),
  }
  for name, array in arrays.items():
    np.save(root / f"{name}.npy", array)
  return str(root)


def as_npz(root: Path, data: list[bytes], label: list[int]) -> str:
  root.mkdir(parents=True)
  np.savez(
    root / "all.npz", images=np.stack([image_file.decode(x) for x in data]),
    labels=np.array(label), class_names=np.array(CLASSES),
  )  # fmt: skip
  return str(root / "all.npz")


def as_array_record(root: Path, data: list[bytes], label: list[int]) -> str:
  from vitscale.data import table

  source = table.table(as_table(root / "from", data, label), val=0.0)
  array_record.write({"train": source}, root / "to", channels=3, per_shard=7)
  return str(root / "to")


def as_tfds(root: Path, data: list[bytes], label: list[int]) -> str:
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=list(CLASSES)),
      })  # fmt: skip
      return tfds.core.DatasetInfo(
        builder=self, features=features, disable_shuffling=True
      )

    def _split_generators(self, manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      for i, (file, c) in enumerate(zip(data, label, strict=True)):
        yield i, {"image": io.BytesIO(file), "label": c}

  builder = Tiny(data_dir=root, file_format="array_record")
  builder.download_and_prepare()
  return str(builder.data_path)


FORMATS = {
  "table": as_table,
  "parquet": as_parquet,
  "webdataset": as_webdataset,
  "array_record": as_array_record,
  "numpy": as_numpy,
  "npz": as_npz,
  "tfds": as_tfds,
}
NEEDS = {"parquet": "pyarrow", "tfds": "tensorflow_datasets"}
