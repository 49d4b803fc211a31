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
  back = timm.to_timm(
    v["params"],
    model,
    class_token="cls_token" in state,
    embed_prefix=model.prefix_position,
  )
  assert set(back) == set(state)
  for name, value in state.items():
    np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_positions_of_prefix_tokens_can_be_folded(golden):
  """A model without them gives the same logits, and goes back with zeros."""
  state = state_of(golden, "cls")
  model, v = timm.load(state, num_heads=2, prefix_position=False)
  assert "prefix_positions" not in v["params"]
  y, _ = jax.jit(model.apply)(v, golden["image"].transpose(0, 2, 3, 1))
  np.testing.assert_allclose(y, golden["cls/logits"], atol=1e-5)
  back = timm.to_timm(v["params"], model)
  assert back["pos_embed"].shape == state["pos_embed"].shape
  assert not back["pos_embed"][:, 0].any()


def test_a_difference_names_both_sides(golden):
  state = state_of(golden, "cls")
  state["blocks.1.mlp.fc3.bias"] = state.pop("blocks.1.mlp.fc2.bias")
  with pytest.raises(UserError) as e:
    timm.load(state, num_heads=2)
  assert "-blocks.1.mlp.fc2.bias" in str(e.value)
  assert "+blocks.1.mlp.fc3.bias" in str(e.value)
  state = state_of(golden, "cls")
  state["head.bias"] = state["head.bias"][:3]
  with pytest.raises(UserError, match=r"head.bias \(3,\) does not fit"):
    timm.load(state, num_heads=2)
  with pytest.raises(UserError, match="no timm VisionTransformer"):
    timm.load({}, num_heads=2)
