"""The same numbers as timm from the same weights (stored arrays, no torch)."""

import pathlib

import jax
import numpy as np
import pytest

from vitscale.core.errors import UserError
from vitscale.interop import timm

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "timm_vit.npz"
CASES = ("cls", "cls_registers", "mean", "mean_plain", "map")


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN) as arrays:
    return dict(arrays)


def state_of(golden, case):
  start = f"{case}/state/"
  return {k[len(start) :]: v for k, v in golden.items() if k.startswith(start)}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_features(golden, case):
  scan = case in ("cls", "map")
  model, v = timm.load(state_of(golden, case), num_heads=2, scan=scan)
  image = golden["image"].transpose(0, 2, 3, 1)
  y, out = jax.jit(model.apply)(v, image)
  np.testing.assert_allclose(y, golden[f"{case}/logits"], atol=1e-5)
  if not model.norm_pooled:  # timm norms those tokens after pooling
    np.testing.assert_allclose(
      out["tokens"], golden[f"{case}/features"], atol=1e-5
    )


@pytest.mark.parametrize("case", CASES)
def test_round_trip(golden, case):
  state = state_of(golden, case)
  model, v = timm.load(state, num_heads=2, scan=case == "cls")
  avg = "cls_token" in state and model.pool != "cls"
  back = timm.to_timm(v["params"], model, class_token=avg)
  assert set(back) == set(state)
  for name, value in state.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_a_difference_names_both_sides(golden):
  state = state_of(golden, "cls")
  state["blocks.1.mlp.fc3.bias"] = state.pop("blocks.1.mlp.fc2.bias")
  with pytest.raises(UserError) as e:
    timm.load(state, num_heads=2)
  assert "+blocks.1.mlp.fc2.bias" in str(e.value)
  assert "-blocks.1.mlp.fc3.bias" in str(e.value)
  state = state_of(golden, "cls")
  state["head.bias"] = state["head.bias"][:3]
  says = r"~head\.bias float32\[3\] -> float32\[5\]"
  with pytest.raises(UserError, match=says):
    timm.load(state, num_heads=2)
  with pytest.raises(UserError, match="no timm VisionTransformer"):
    timm.load({}, num_heads=2)
