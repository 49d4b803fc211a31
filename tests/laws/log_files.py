"""Small files to read, and what is said of bad ones."""

import pytest

from vitscale.core.errors import UserError
from vitscale.laws.ingest import read_files


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def complaint(paths, **kwargs):
  with pytest.raises(UserError) as error:
    read_files(paths, **kwargs)
  text = str(error.value)
  assert "\n" not in text
  return text


def notes(table):
  return "; ".join(table.notes)
