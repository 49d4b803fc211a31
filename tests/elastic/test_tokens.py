"""Pairs of Pattention as one axis: grown by appending, shrunk by a prefix."""

import functools

import jax
import numpy as np
import pytest

from tests import toys
from vitscale import workdir as workdir_lib
from vitscale.core import axes, tree
from vitscale.core.errors import UserError
from vitscale.elastic import cut, grow
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.slice import nest
from vitscale.models import pattention_vit, vit
from vitscale.train import train

IMAGE = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("f4")
toy = functools.partial(
  pattention_vit.Model, num_classes=3, width=16, depth=2, num_heads=2,
  patch_size=4, tokens=24, ffn_tokens=48,
)  # fmt: skip
FROZEN = {"scale_tokens": 12, "ffn_scale_tokens": 24}


def made(model, seed=0):
  """(parameters moved off their initial values, names)"""
  rng = np.random.default_rng(seed)
  boxed = jax.jit(model.init)(jax.random.key(seed), IMAGE)
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f4"),
    axes.unbox(boxed)["params"],
  )
  return params, axes.names_of(boxed)["params"]


def logits(model, params):
  return np.asarray(jax.jit(model.apply)({"params": params}, IMAGE)[0])


def part(model, params, names, text):
  """(small model, its parameters) of a spec."""
  small, layers = spec_lib.small(model, spec_lib.parse(text))
  shapes = axes.unbox(jax.eval_shape(small.init, jax.random.key(0), IMAGE))
  return small, nest(params, names, shapes["params"], layers)


@pytest.mark.parametrize(
  ("text", "changes"),
  [
    ("tokens=1/2", {"tokens": 12, "ffn_tokens": 24}),
    ("tokens=6", {"tokens": 6, "ffn_tokens": 12}),
    ("tokens=1/4 depth=1/2", {"tokens": 6, "ffn_tokens": 12, "depth": 1}),
    (
      "embed=1/2 heads=1/2 tokens=1/2",
      {"width": 8, "num_heads": 1, "tokens": 12, "ffn_tokens": 24},
    ),
    ("full", {}),
  ],
)
def test_specs_of_tokens(text, changes):
  spec = spec_lib.parse(text)
  found, _ = spec_lib.resolve(spec, spec_lib.options_of(toy()))
  assert found == changes
  assert spec_lib.parse(str(spec)) == spec


@pytest.mark.parametrize(
  ("text", "model", "says"),
  [
    ("tokens=1/5", toy(), r"1/5 of 24 is 4.8, not whole"),
    ("tokens=48", toy(), "tokens=48: the model has 24"),
    ("tokens=1/2,1", toy(), "one value, not one per layer"),
    ("tokens=1/16", toy(tokens=32, ffn_tokens=40), "1/16 of 40 is 2.5"),
    ("ffn=1/2", toy(), "this family has no 'mlp_dim' to cut"),
    ("tokens=1/2", vit.Model(num_classes=3), "has no 'tokens' to cut"),
    ("heads=1/2", toy(), "give heads= and embed= the same part"),
  ],
)
def test_what_does_not_fit(text, model, says):
  with pytest.raises(UserError, match=says):
    spec_lib.resolve(spec_lib.parse(text), spec_lib.options_of(model))


@pytest.mark.parametrize("scales", [FROZEN, {}])
def test_a_prefix_is_the_model_with_the_other_values_at_zero_keys(scales):
  """Sliced equals cut by hand, and masked keys in the big model."""
  model = toy(**scales)
  params, names = made(model)
  small, own = part(model, params, names, "tokens=1/2")
  assert (small.scale_tokens, small.ffn_scale_tokens) == (
    scales.get("scale_tokens"), scales.get("ffn_scale_tokens"),
  )  # fmt: skip

  def half(path, x):
    for dim, name in enumerate(tree.flatten(names)[path].names):
      if axes.role(name) in ("code", "mlp"):
        x = np.take(x, range(x.shape[dim] // 2), dim)
    return x

  by_hand = {k: half(k, v) for k, v in tree.flatten(params).items()}
  for path, x in tree.flatten(own).items():
    np.testing.assert_array_equal(x, by_hand[path])
  zeroed = dict(tree.flatten(params))
  for path, x in zeroed.items():
    if path.endswith("keys/kernel"):
      zeroed[path] = x.at[..., x.shape[-1] // 2 :].set(0)
  masked = logits(model, tree.like(params, zeroed))
  gap = np.abs(masked - logits(small, own)).max()
  # With a root of its own count a part is no masked whole, but a model still.
  assert (gap < 1e-5) == bool(scales), gap


def test_what_was_grown_shrinks_to_what_it_was():
  small = toy(tokens=12, ffn_tokens=24, **FROZEN)
  model = toy(**FROZEN)
  old, _ = made(small)
  fresh, names = made(model, seed=1)
  grown = grow.append(old, names, fresh)
  found, own = part(model, grown, names, "tokens=1/2")
  assert found == small
  np.testing.assert_array_equal(logits(found, own), logits(small, old))
  before = logits(small, old)
  assert np.abs(logits(model, grown) - before).max() < 1e-5


def test_nested_training_of_pairs_and_its_cut(tmp_path):
  config = toys.config(total_steps=4, ema=0.0)
  config.model = {
    "family": "pattention_vit", "width": 16, "depth": 1, "num_heads": 2,
    "patch_size": 4, "tokens": 12, "ffn_tokens": 24, **FROZEN,
  }  # fmt: skip
  config.task = {
    "name": "nested", "of": {"name": "classify"}, "strategy": "joint",
    "granularities": ("tokens=1/2", "full"),
  }  # fmt: skip
  config.evals.val.name = "nested"
  result = train(config, tmp_path / "nested")
  metrics = result["metrics"]
  part, whole = (metrics[f"eval/val/{k}nll"] for k in ("tokens=1/2/", ""))
  assert np.isfinite(part) and part != whole
  found = cut.cut(tmp_path / "nested", tmp_path / "half", spec="tokens=1/2")
  assert found["metrics"]["cut"]["val/nll"] == pytest.approx(part, abs=1e-5)
  model, _ = workdir_lib.load(tmp_path / "half")
  assert (model.tokens, model.ffn_tokens, model.scale_tokens) == (6, 12, 12)
  assert found["params"] < result["params"]
