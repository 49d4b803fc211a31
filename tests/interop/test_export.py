"""Cut models in timm: stored logits of timm, and timm itself where it is.

`python -m tests.interop.test_export DIR` writes what
tests/golden/make_timm_cut.py reads.
"""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.slice import nest
from vitscale.interop import safetensors, timm
from vitscale.models import vit

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "timm_cut.npz"
IMAGE = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype("f4")
BIG = {
  "num_classes": 5, "width": 32, "depth": 3, "mlp_dim": 64, "num_heads": 4,
  "patch_size": 8,
}  # fmt: skip
CASES = {
  "ffn": ("ffn=1/4", {"pool": "cls", "prefix_position": True, "gelu": "erf"}),
  "all": (
    "ffn=1/2 heads=1/2 embed=1/2 layers=0,2",
    {"position": "sincos2d", "scan": True, "registers": 1},
  ),
  "map": (
    "ffn=21 depth=2",
    {"pool": "map", "position": "factorized", "layer_scale": 0.5,
     "qk_norm": True},
  ),
}  # fmt: skip


def make(case):
  """The small model of a case and its parameters, from fixed noise."""
  text, options = CASES[case]
  big = vit.Model(**BIG, **options)
  boxed = lambda m: jax.eval_shape(m.init, jax.random.key(0), IMAGE)
  rng = np.random.default_rng(1)
  draw = lambda x: (0.2 * rng.normal(size=x.shape)).astype("f4")
  whole = jax.tree.map(draw, axes.unbox(boxed(big)))
  little, layers = spec_lib.small(big, spec_lib.parse(text))
  names, shapes = axes.names_of(boxed(big)), axes.unbox(boxed(little))
  return little, nest(whole, names, shapes, layers)


def write(case, folder):
  little, variables = make(case)
  state, kwargs = timm.export(variables["params"], little, (24, 24, 3))
  folder.mkdir()
  safetensors.write(folder / "timm.safetensors", state)
  (folder / "timm.json").write_text(json.dumps(kwargs))


def test_timm_computes_the_same(case, tmp_path):
  """Logits of timm 1.0 on the exported weights, to 1e-4."""
  little, variables = make(case)
  y, _ = jax.jit(little.apply)(variables, IMAGE)
  with np.load(GOLDEN) as golden:
    want = golden[case]
  assert np.abs(want).max() > 0.1
  np.testing.assert_allclose(y, want, atol=1e-4)
  write(case, tmp_path / case)
  state = safetensors.read(tmp_path / case / "timm.safetensors")
  back, v = timm.load(
    state, num_heads=little.num_heads, gelu=little.gelu,
    norm_pooled=little.norm_pooled, pool=little.pool,
  )  # fmt: skip
  y, _ = jax.jit(back.apply)(v, IMAGE)
  np.testing.assert_allclose(y, want, atol=1e-4)


def test_timm_itself(case, tmp_path):
  torch = pytest.importorskip("torch")
  pytest.importorskip("timm")
  from tests.golden import make_timm_cut

  write(case, tmp_path / case)
  little, variables = make(case)
  image = torch.from_numpy(IMAGE.transpose(0, 3, 1, 2).copy())
  y, _ = jax.jit(little.apply)(variables, IMAGE)
  got = make_timm_cut.logits(tmp_path / case, image)
  np.testing.assert_allclose(y, got, atol=1e-4)


def pytest_generate_tests(metafunc):
  if "case" in metafunc.fixturenames:
    metafunc.parametrize("case", list(CASES))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"mlp_dim": (8, 16, 16)}, "no hidden widths that differ"),
    ({"num_heads": (1, 2, 2), "head_dim": 8}, "no numbers of heads that"),
    ({"num_heads": 2, "head_dim": 8}, "no heads whose widths don't add up"),
    ({"out_dim": 8}, "no out_dim"),
    ({"ffn": "swiglu"}, "no ffn 'swiglu'"),
    ({"position": "rope2d"}, "no position 'rope2d'"),
    ({"bias": False}, "no bias=False"),
  ],
)
def test_what_timm_lacks(changes, says):
  with pytest.raises(UserError, match=says):
    timm.export({}, vit.Model(**{**BIG, **changes}), (24, 24, 3))


# --------------------------------------------------------------- safetensors


def test_safetensors_round_trip(tmp_path):
  arrays = {
    "a/b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scalar": np.float64(3.5), "none": np.zeros((0, 4), np.float16),
    "bytes": np.array([[1, 255]], np.uint8), "yes": np.array([True]),
    "turned": np.arange(6, dtype=np.int32).reshape(2, 3).T,
  }  # fmt: skip
  path = tmp_path / "x.safetensors"
  safetensors.write(path, arrays, {"made by": "a test"})
  found = safetensors.read(path)
  assert list(found) == list(arrays)
  for name, x in arrays.items():
    np.testing.assert_array_equal(found[name], x)
    assert found[name].dtype == x.dtype
  start = int.from_bytes(path.read_bytes()[:8], "little")
  assert start % 8 == 0  # arrays are aligned


def test_safetensors_refuses(tmp_path):
  path = tmp_path / "x.safetensors"
  with pytest.raises(UserError, match="complex64 is not written"):
    safetensors.write(path, {"z": np.zeros(1, np.complex64)})
  safetensors.write(path, {"a": np.ones(4, np.float32)})
  path.write_bytes(path.read_bytes()[:-3])
  with pytest.raises(UserError, match="no whole safetensors file"):
    safetensors.read(path)
  path.write_bytes(b"nothing")
  with pytest.raises(UserError, match="no whole safetensors file"):
    safetensors.read(path)
  with pytest.raises(UserError, match=r"can't read .*: No such file"):
    safetensors.read(tmp_path / "absent")


if __name__ == "__main__":
  root = pathlib.Path(sys.argv[1])
  root.mkdir(parents=True)
  np.save(root / "image.npy", IMAGE)
  for name in CASES:
    write(name, root / name)
