"""Pattention: the published sizes, counted."""

import jax
import pytest

from vitscale.core import accounting, axes
from vitscale.models import pattention_vit


def params(image=224, **kwargs):
  model = pattention_vit.Model(num_classes=1000, pool="cls", **kwargs)
  like = jax.ShapeDtypeStruct((1, image, image, 3), "f4")
  boxed = jax.eval_shape(model.init, jax.random.key(0), like)["params"]
  return accounting.params_by_role(axes.unbox(boxed), axes.names_of(boxed))


@pytest.mark.parametrize(
  ("size", "tokens", "millions"),
  [
    ((768, 12, 12), 729, 109),
    ((1024, 24, 16), 1030, 407),
    ((768, 12, 12), 576, 86),  # the plain ViT-B/16's
  ],
)
def test_pairs_that_give_the_published_counts(size, tokens, millions):
  width, depth, heads = size
  found = params(
    width=width, depth=depth, num_heads=heads, tokens=tokens,
    ffn_tokens=4 * tokens, patch_size=16,
  )  # fmt: skip
  assert round(found["total"] / 1e6) == millions


@pytest.mark.parametrize("tokens", [576, 2140, 4850, 8620])
def test_sizes_of_table_6_by_hand(tokens):
  """12 layers of width 768: 2 d (4 n + 4 n) parameters in each."""
  variant = pattention_vit.variant(f"B-{tokens}/16")
  found = params(**variant)
  blocks = 12 * 2 * 768 * 8 * tokens
  rest = 256 * 3 * 768 + 768 + 197 * 768 + 2 * 768 + 769_000
  assert abs(found["total"] - blocks - rest) <= 768
