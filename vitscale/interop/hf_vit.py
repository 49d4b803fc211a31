"""Hugging Face's ViT and DeiT (`ViTModel`, `ViTForImageClassification`, ...).

The distillation token of DeiT is a register here: attended to, not pooled.
A second head on it has no place (`DeiTForImageClassificationWithTeacher`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vitscale.core.errors import UserError
from vitscale.interop import mapping
from vitscale.interop.mapping import Found, Layout, Row, Shapes, Table
from vitscale.models.vit import Model

TABLE = Table(
  block="encoder.layer.{}.",
  layer={
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention/qkv": tuple(
      f"attention.attention.{name}" for name in ("query", "key", "value")
    ),
    "attention/out": "attention.output.dense",
    "mlp/up": "intermediate.dense",
    "mlp/down": "output.dense",
  },
  top={
    "embed": "embeddings.patch_embeddings.projection",
    "final_norm": "layernorm",
    "head": "classifier",
  },
)
PATCH = "embeddings.patch_embeddings.projection.weight"
DISTILLED = "embeddings.distillation_token"


def rows(model: Model, paths: Iterable[str]) -> list[Row]:
  """Class token, the distillation token if there is a register, positions."""
  found = mapping.rows(TABLE, model, paths)
  found.append(mapping.tokens("embeddings.cls_token", "cls_token"))
  if model.registers:
    found.append(mapping.tokens(DISTILLED, "register_tokens"))
  where = "embeddings.position_embeddings"
  return [*found, mapping.positions(where, model)]


def read(shapes: Shapes, config: Mapping[str, Any]) -> Found:
  """Sizes off the arrays; heads, eps and activation off config.json."""
  if "distillation_classifier.weight" in shapes:
    raise UserError(
      "DeiT with a head on its distillation token: the vit family has one head;"
      " import DeiTForImageClassification, which has the class token's"
    )
  width, channels, *patch = shapes[PATCH].shape
  up = "encoder.layer.0.intermediate.dense.weight"
  head = shapes.get("classifier.weight")
  registers = int(DISTILLED in shapes)
  table = shapes["embeddings.position_embeddings"].shape[1]
  kwargs = {
    "num_classes": head.shape[0] if head is not None else 0,
    "width": width,
    "depth": mapping.depth_of(shapes, r"encoder\.layer\.(\d+)\."),
    "mlp_dim": shapes[up].shape[0] if up in shapes else 4 * width,
    **mapping.heads_of(width, config),
    "patch_size": tuple(patch),
    "pool": "cls",
    "registers": registers,
    "prefix_position": True,
    "gelu": mapping.gelu_of(config.get("hidden_act", "gelu")),
    "norm_eps": config.get("layer_norm_eps", 1e-12),
  }
  side = mapping.side_of(table, 1 + registers, "embeddings.position_embeddings")
  return Found(kwargs, side, channels, rows)


LAYOUT = Layout(
  name="hf_vit",
  what="Hugging Face ViT or DeiT",
  marks=(
    r"(vit\.|deit\.)?embeddings\.patch_embeddings\.projection\.weight",
    r"(vit\.|deit\.)?encoder\.layer\.0\.layernorm_before\.weight",
    r"(vit\.|deit\.)?embeddings\.position_embeddings",
  ),
  strip=r"(vit|deit)\.",
  left=r"pooler\..*|decoder\..*|embeddings\.mask_token",
  read=read,
  preprocess=mapping.HALF,
)
