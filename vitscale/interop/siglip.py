"""The vision tower of SigLIP (2303.15343) in Hugging Face's names.

No class token, learned positions, attention pooling ("MAP"). A text tower
beside it stays behind.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vitscale.interop import mapping
from vitscale.interop.mapping import Found, Layout, Row, Shapes, Table
from vitscale.models.vit import Model

TABLE = Table(
  block="encoder.layers.{}.",
  layer={
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention/qkv": tuple(f"self_attn.{name}_proj" for name in "qkv"),
    "attention/out": "self_attn.out_proj",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
  },
  top={
    "embed": "embeddings.patch_embedding",
    "final_norm": "post_layernorm",
    ("map_head/q", "map_head/kv"): "head.attention.in_proj_{}",
    "map_head/out": "head.attention.out_proj",
    "map_head/norm": "head.layernorm",
    "map_head/mlp/up": "head.mlp.fc1",
    "map_head/mlp/down": "head.mlp.fc2",
  },
)
PATCH, POSITIONS = (
  "embeddings.patch_embedding.weight",
  "embeddings.position_embedding.weight",
)


def rows(model: Model, paths: Iterable[str]) -> list[Row]:
  """The table, positions and the probe that pools."""
  return [
    *mapping.rows(TABLE, model, paths),
    mapping.positions(POSITIONS, model, flat=True),
    mapping.tokens("head.probe", "map_head/probe"),
  ]


def read(shapes: Shapes, config: Mapping[str, Any]) -> Found:
  """Sizes off the arrays; heads, eps and activation off config.json."""
  config = config.get("vision_config", config)
  width, channels, *patch = shapes[PATCH].shape
  kwargs = {
    "num_classes": 0,
    "width": width,
    "depth": mapping.depth_of(shapes, r"encoder\.layers\.(\d+)\."),
    "mlp_dim": shapes["encoder.layers.0.mlp.fc1.weight"].shape[0],
    **mapping.heads_of(width, config),
    "patch_size": tuple(patch),
    "pool": "map",
    "gelu": mapping.gelu_of(config.get("hidden_act", "gelu_pytorch_tanh")),
    "norm_eps": config.get("layer_norm_eps", 1e-6),
  }
  side = mapping.side_of(shapes[POSITIONS].shape[0], 0, POSITIONS)
  return Found(kwargs, side, channels, rows)


LAYOUT = Layout(
  name="siglip",
  what="Hugging Face SigLIP",
  marks=(
    r"(vision_model\.)?embeddings\.patch_embedding\.weight",
    r"(vision_model\.)?encoder\.layers\.0\.mlp\.fc1\.weight",
    r"(vision_model\.)?head\.probe",
  ),
  strip=r"vision_model\.",
  left=r"text_model\..*|logit_(scale|bias)|.*\.position_ids",
  read=read,
  preprocess=mapping.HALF,
)
