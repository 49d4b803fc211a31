"""Sequences of the Long Range Arena from your files, as they come.

  lra_listops     basic_train.tsv basic_val.tsv basic_test.tsv
  lra_text        aclImdb/train/pos/*.txt .../neg/*.txt, aclImdb/test/...
  lra_retrieval   new_aan_pairs.train.tsv new_aan_pairs.eval.tsv ...test.tsv

Tay et al., 2011.04006, section 2.2. Texts are bytes plus 1, so that 0 can be
padding; UTF-8 has no byte 255. Sequences are images (1, length, 1). Other than
published, `val` of the texts is a tenth of the training texts (published: the
test texts). Pictures are in lra_pictures.py; ListOps can also be generated.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import listops, source

_UNCHANGED = (0.0,), (1 / 255,)  # mean, deviation: tokens stay what they are


# -------------------------------------------------------------------- ListOps


def lra_listops(
  path: str, split: str = "train", *, length: int = 2000
) -> source.Source:
  """The released ListOps files, with the tokens of `listops`.

  Args:
    path: folder of basic_{train,val,test}.tsv.
    split: "train", "val" or "test".
    length: of the sequences; a longer expression is an error.
  """
  source.check_split(split)
  file = existing(path, f"basic_{split}.tsv")
  rows, label = [], []
  for number, line in enumerate(file.read_bytes().splitlines()):
    where = f"{file}:{number + 1}"
    fields = line.split(b"\t")
    if number == 0 and fields[0] == b"Source":
      continue
    if len(fields) != 2 or fields[1] not in _DIGITS:
      raise UserError(
        f"{where}: want an expression, a tab and its value 0 to 9"
      )
    rows.append(_row(_expression(fields[0], where), length, where))
    label.append(int(fields[1]))
  some(rows, file)
  names = [str(i) for i in range(10)]
  return listops.sequences(np.stack(rows)[:, None], label, names)


_DIGITS = tuple(str(i).encode() for i in range(10))
_CODES = np.full(256, 255, np.uint8)  # of a byte, once operators are one each
_CODES[list(b"0123456789]")] = [*range(1, 11), listops.CLOSE]
_CODES[list(b"ABCD")] = range(listops.OPERATOR, listops.CLOSE)


def _expression(text: bytes, where: str) -> np.ndarray:
  """Tokens of `( ( [MAX 3 ) ] )`: parentheses say nothing more."""
  for name, letter in zip(listops.OPERATORS, "ABCD"):
    text = text.replace(f"[{name} ".encode(), f"{letter} ".encode())
  codes = _CODES[np.frombuffer(text.translate(None, b"() "), np.uint8)]
  if (codes == 255).any() or not len(codes):
    known = " ".join(listops.TOKENS[1:])
    raise UserError(f"{where}: no ListOps expression; tokens are {known} ( )")
  return codes


# ---------------------------------------------------------------------- texts


def lra_text(
  path: str, split: str = "train", *, length: int = 1000, val: float = 0.1
) -> source.Source:
  """IMDb reviews as bytes; label 1 is positive.

  Args:
    path: the folder aclImdb, or the one it is in.
    split: "train", "val" or "test".
    length: bytes that are kept of a review (published: 1000 and up to 4000).
    val: share of the training reviews of each class that is held out.
  """
  source.check_split(split)
  _share("lra_text", "val", val)
  here = Path(path).expanduser()
  root = next(
    (p for p in (here / "aclImdb", here) if (p / "train").is_dir()), None
  )
  if root is None:
    raise UserError(
      f"{here} has no train/: lra_text wants aclImdb with"
      " train/pos/*.txt, train/neg/*.txt and the same below test/"
    )
  rows, label = [], []
  for y, name in enumerate(("neg", "pos")):
    where = root / ("test" if split == "test" else "train") / name
    files = sorted(where.glob("*.txt")) if where.is_dir() else []
    if not files:
      raise UserError(f"no reviews {where}/*.txt")
    if split != "test":
      held_out, kept = carved([f.name for f in files], (val,))
      chosen = held_out if split == "val" else kept
      files = [files[i] for i in chosen]
    rows += [_row(_bytes(f.read_bytes(), f), length) for f in files]
    label += [y] * len(files)
  some(rows, root)
  return listops.sequences(
    np.stack(rows)[:, None], label, ("negative", "positive")
  )


def lra_retrieval(
  path: str, split: str = "train", *, length: int = 4000
) -> source.Source:
  """Pairs of papers of the AAN as bytes (2, length, 1); label 1 is "cites".

  Texts stay in the file and are read when they are asked for.

  Args:
    path: folder of new_aan_pairs.{train,eval,test}.tsv: label, two names and
      two texts with tabs between.
    split: "train", "val" or "test".
    length: bytes that are kept of each text.
  """
  source.check_split(split)
  part = "eval" if split == "val" else split
  file = existing(path, f"new_aan_pairs.{part}.tsv")
  label, starts, at = [], [], 0
  with file.open("rb") as lines:
    for number, line in enumerate(lines):
      fields = line.split(b"\t")
      if len(fields) != 5 or fields[0] not in (b"0", b"1", b"0.0", b"1.0"):
        raise UserError(
          f"{file}:{number + 1}: want 0.0 or 1.0, two names and two texts, tabs"
          f" between, got {len(fields)} fields"
        )
      label.append(int(float(fields[0])))
      starts.append(at)
      at += len(line)
  some(label, file)
  return source.Source(
    images=functools.partial(_pairs, str(file), np.array(starts), length),
    label=np.array(label, np.int32),
    class_names=("unrelated", "cites"),
    shape=(2, length, 1),
    mean=_UNCHANGED[0],
    std=_UNCHANGED[1],
    fingerprint=source.digest(file.name, at, length, np.array(label)),
  )


def _pairs(file: str, starts: np.ndarray, length: int, indices) -> np.ndarray:
  """(b, 2, length, 1) tokens of the lines that begin at `starts[indices]`."""
  rows = []
  with open(file, "rb") as lines:
    for start in starts[indices]:
      lines.seek(start)
      texts = lines.readline().rstrip(b"\r\n").split(b"\t")[3:]
      rows.append([_row(_bytes(text, file), length) for text in texts])
  return np.array(rows, np.uint8).reshape(-1, 2, length, 1)


def _bytes(text: bytes, where: Path | str) -> np.ndarray:
  codes = np.frombuffer(text, np.uint8)
  if (codes == 255).any():
    raise UserError(f"{where}: byte 255 is no part of UTF-8: want a text file")
  return codes + np.uint8(1)


def _row(codes: np.ndarray, length: int, where: str = "") -> np.ndarray:
  """(length,) uint8, padded with 0; cut, unless `where` says it mustn't be."""
  if where and len(codes) > length:
    raise UserError(f"{where}: {len(codes)} tokens, want length={len(codes)}")
  row = np.zeros(length, np.uint8)
  row[: len(codes)] = codes[:length]
  return row


# -------------------------------------------------------------------- helpers


def existing(path: Path | str, name: str) -> Path:
  file = Path(path).expanduser() / name
  if not file.is_file():
    raise UserError(f"no file {file}")
  return file


def some(found: Any, where: Path) -> None:
  if not len(found):
    raise UserError(f"{where}: no example in it")


def _share(what: str, name: str, value: float) -> None:
  if not 0 < value < 1:
    raise UserError(f"{what}: {name}={value}: want a share between 0 and 1")


def carved(names: Sequence[str], shares: Sequence[float]) -> list[list[int]]:
  """Indices of each share and of the rest, by rank of a hash of the names."""
  key = lambda i: hashlib.sha256(names[i].encode()).digest()
  order, start, parts = sorted(range(len(names)), key=key), 0, []
  for share in shares:
    end = start + max(1, round(share * len(names)))
    parts.append(sorted(order[start:end]))
    start = end
  return [*parts, sorted(order[start:])]
