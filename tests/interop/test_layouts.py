"""The same numbers as peers from the same weights, by their names.

Weights and outputs are those of golden/make_interop.py; nothing of the peers is
needed here.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from vitscale.core import tree
from vitscale.interop import detect, files, importer, mapping
from vitscale.models.vit import Model

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "interop.npz"
LAYOUT_OF = {
  "hf_vit": "hf_vit", "hf_deit": "hf_vit", "dinov2": "dinov2",
  "dinov2_swiglu": "dinov2", "dinov2_registers": "dinov2", "siglip": "siglip",
  "mae": "mae", "timm_packed": "timm", "timm_avg": "timm",
  "mae_released": "mae_released", "dinov2_released": "dinov2_released",
  "bv_map": "big_vision", "bv_cls": "big_vision",
  "bv_gap_scanned": "big_vision",
}  # fmt: skip


def golden(case):
  """The weights of a case as if opened, what they give, and the images."""
  with np.load(GOLDEN) as arrays:
    flat, at, state = arrays[f"{case}/state"], 0, {}
    facts = json.loads(str(arrays[f"{case}/facts"]))
    want, image = arrays[f"{case}/out"], arrays["image"]
  for name, shape in facts["shapes"].items():
    n = int(np.prod(shape))
    state[name] = flat[at : at + n].reshape(shape).astype("f4")
    at += n
  weights = files.Weights(
    pathlib.Path(case), {k: files._shape(x) for k, x in state.items()},
    state.__getitem__, facts["config"], {},
  )  # fmt: skip
  return weights, state, want, image


def opened(case):
  """(layout, found, model, params, state under the layout's names)."""
  weights, _, _, _ = golden(case)
  layout = detect.layout(weights.shapes, weights.config)
  shapes, weights, _ = importer.stripped(layout, weights)
  found = layout.read(shapes, weights.config)
  # A width of 16 tells no heads where no config is.
  model = Model(**{"num_heads": 2, **found.kwargs})
  side = found.side or 2
  params = importer.parameters(found, model, side, shapes, weights)
  return layout, found, model, params, {k: weights.read(k) for k in shapes}


@pytest.fixture(params=list(LAYOUT_OF))
def case(request):
  return request.param


def test_outputs_and_the_way_back(case):
  """Outputs to 1e-4, and the same bits under the same names."""
  layout, found, model, params, state = opened(case)
  assert layout.name == LAYOUT_OF[case]
  _, _, want, image = golden(case)
  assert np.abs(want).max() > 0.5
  params = tree.unflatten(params)
  y, _ = jax.jit(model.apply)({"params": params}, image)
  np.testing.assert_allclose(y, want, atol=1e-4)
  made = found.rows(model, tree.flatten(params))
  back = mapping.to_theirs(made, params, model)
  assert set(back) == set(state)
  for name, x in state.items():
    np.testing.assert_array_equal(back[name], x, err_msg=name)
