"""Tensors of torch's files, as torch wrote them, and nothing else of them."""

import collections
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.interop import torch_file

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LAYOUTS = ("torch_zip", "torch_stream")


def golden(layout):
  return GOLDEN / f"{layout}.pth"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_torch_wrote(layout):
  """See golden/make_torch_files.py."""
  base = np.arange(24, dtype=np.float32)
  want = {
    "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": base.reshape(4, 6).T,
    "part": base[5:9],
    "parameter": np.array([0.5, -0.5], np.float32),
    "half": np.array([1.5, -2.0], np.float16),
    "count": np.array(7),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3)),
  }
  found = torch_file.read(golden(layout))
  assert list(found) == list(want)
  for name, value in want.items():
    assert found[name].dtype == value.dtype, name
    np.testing.assert_array_equal(found[name], value)
  found["part"][:] = 0  # each is a copy of its own
  np.testing.assert_array_equal(found["turned"], base.reshape(4, 6).T)


# ------------------------------------------------------- what is not tensors


class Call:
  """Pickled as a call of any function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def zipped(path, content):
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("a/data.pkl", pickle.dumps(content, 2))


def streamed(path, content):
  out = io.BytesIO()
  parts = (torch_file.MAGIC, torch_file.PROTOCOL, {"little_endian": True},
           content, [])  # fmt: skip
  for part in parts:
    pickle.dump(part, out, 2)
  path.write_bytes(out.getvalue())


@pytest.mark.parametrize("write", [zipped, streamed])
@pytest.mark.parametrize(
  ("content", "says"),
  [
    ({"a": Call(os.system, "echo > {ran}")}, "asks for posix.system"),
    ({"a": Call(eval, "open('{ran}', 'w')")}, "asks for .*builtin.*.eval"),
    ({"a": Call(getattr, "a", "b")}, "asks for .*builtin.*.getattr"),
    ({"a": collections.Counter()}, "asks for collections.Counter"),
    ({"epoch": 3}, "holds 'epoch', no tensor: want a state dict"),
    ({"net": {"a": 1}}, "holds 'net', no tensor"),
    ({"model": {"a": 1}}, "holds 'a', no tensor"),
    ([1, 2], "holds one list: want a state dict"),
  ],
)
def test_no_code_runs(write, content, says, tmp_path):
  ran, path = tmp_path / "ran", tmp_path / "a.pth"
  for value in content.values() if isinstance(content, dict) else ():
    if isinstance(value, Call):
      function, args = value.call
      value.call = function, tuple(a.replace("{ran}", str(ran)) for a in args)
  write(path, content)
  with pytest.raises(UserError, match=says) as error:
    torch_file.read(path)
  assert "\n" not in str(error.value) and str(path) in str(error.value)
  assert not ran.exists()


def test_a_call_in_the_head_of_a_stream(tmp_path):
  ran, path = tmp_path / "ran", tmp_path / "a.pth"
  path.write_bytes(pickle.dumps(Call(os.system, f"echo > {ran}"), 2))
  with pytest.raises(UserError, match=r"asks for posix\.system"):
    torch_file.read(path)
  assert not ran.exists()


def with_tensor(path, *, n=6, offset=0, shape=(2, 3), strides=(3, 1), held=6):
  """A zip whose one tensor is a view as given, of `held` floats."""
  # Names of modules that aren't here are written by hand.
  body = io.BytesIO()
  args = (offset, shape, strides, False, None)
  body.write(b"\x80\x02}U\x01actorch._utils\n_rebuild_tensor_v2\n")
  body.write(b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu")
  body.write(f"I{n}\n".encode() + b"tQ")
  for part in args:
    body.write(pickle.dumps(part, 2)[2:-1])
  body.write(b"tRs.")
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("a/data.pkl", body.getvalue())
    file.writestr("a/data/0", np.arange(held, dtype="<f4").tobytes())
  return path


def test_views_stay_within_their_storage(tmp_path):
  found = torch_file.read(with_tensor(tmp_path / "a.pth"))
  np.testing.assert_array_equal(found["a"], [[0, 1, 2], [3, 4, 5]])
  found = torch_file.read(
    with_tensor(tmp_path / "a.pth", offset=1, shape=(2, 2), strides=(1, 2))
  )
  np.testing.assert_array_equal(found["a"], [[1, 3], [2, 4]])
  for wrong in (
    {"offset": 1}, {"offset": -1}, {"strides": (3, 2)}, {"strides": (-3, 1)},
    {"held": 5}, {"held": 7}, {"n": 7}, {"strides": (1,)},
    {"shape": (10**9, 10**9), "strides": (0, 0)}, {"shape": (7,), "n": 7},
  ):  # fmt: skip
    with pytest.raises(UserError, match=r"is no whole file of torch\.save"):
      torch_file.read(with_tensor(tmp_path / "a.pth", **wrong))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_is_one_line(layout, tmp_path):
  whole, path = golden(layout).read_bytes(), tmp_path / "a.pth"
  for cut in (0, 1, 40, len(whole) // 2, len(whole) - 30):
    path.write_bytes(whole[:cut])
    with pytest.raises(UserError, match=r"a\.pth is no whole file"):
      torch_file.read(path)
  with pytest.raises(UserError, match=r"can't read .*none"):
    torch_file.read(tmp_path / "none")


def test_a_state_dict_under_one_name():
  """As MAE and DeiT release theirs."""
  found = torch_file.read(GOLDEN / "torch_wrapped.pth")
  assert set(found) == {"part"}
  np.testing.assert_array_equal(found["part"], np.arange(5, 9, dtype="f4"))
