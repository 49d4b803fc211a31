"""Selectors see held-out images, never the test's unless told to."""

import numpy as np
import pytest

from tests import toys
from vitscale.core.config import to_dict
from vitscale.core.errors import UserError
from vitscale.elastic import apart

FASHION = {"source": "fashion_mnist", "size": 7}


def config(data=FASHION, **evals):
  made = to_dict(toys.config())
  groups = {
    name: {"split": split, "batch_size": 500, "transform": ""}
    for name, split in evals.items()
  }
  return {**made, "data": data, "evals": groups}


def test_val_of_the_training_images_by_default(capsys):
  seen = apart.images(config(val="val", final="test"))
  assert seen.facts() == {
    "source": "fashion_mnist", "split": "val", "images": 2000,
    "evals": ["val"],
  }  # fmt: skip
  assert sum(batch["weight"].sum() for batch in seen.batches()) == 2000
  assert capsys.readouterr().err == ""


def test_val_even_where_the_run_evaluates_the_test_alone(capsys):
  seen = apart.images(config(test="test"))
  assert (seen.split, seen.evals) == ("val", ())
  assert len(next(iter(seen.batches()))["label"]) == 500  # as its evaluation
  assert capsys.readouterr().err == ""
  # Those images are other ones than the test's, of the same kind.
  mine = np.concatenate([b["image"] for b in seen.batches()])
  other = apart.images(config(test="test"), "test")
  theirs = np.concatenate([b["image"] for b in other.batches()])
  keys = lambda images: {image.tobytes() for image in images}
  assert len(keys(mine) & keys(theirs)) < 5  # it has twins at 7 px


def test_the_test_split_is_said_aloud(capsys):
  seen = apart.images(config(val="val", final="test"), "final")
  assert (seen.split, seen.evals) == ("test", ("final",))
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and "warning: selecting on the test split" in err


def test_a_run_that_reports_val_alone_is_warned(capsys):
  apart.images(config(val="val"))
  err = capsys.readouterr().err
  assert err.count("\n") == 1 and "flatter the chosen model" in err
  apart.images(config(val="val"), "val")  # asked for
  assert capsys.readouterr().err == ""


def test_what_cannot_be_selected_on():
  with pytest.raises(UserError, match=r"no images to select on.*would leak"):
    apart.images(config({**FASHION, "val": 0}, test="test"))
  with pytest.raises(UserError, match=r"no evals\.vall .*did you mean 'val'"):
    apart.images(config(val="val"), "vall")
  with pytest.raises(UserError, match="train was trained on"):
    apart.images(config(again="train"), "again")
