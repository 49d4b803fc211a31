"""DINOv2 (2304.07193) as Hugging Face stores it and as it was released.

LayerScale, registers (2309.16588) and, in g, SwiGLU with gate and value in one
matrix. Registers have no position, the class token has: ours are zeros there.
The mask token stays behind.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from vitscale.core.errors import UserError
from vitscale.interop import mapping, timm
from vitscale.interop.mapping import Found, Layout, Row, Shapes, Table
from vitscale.models.vit import Model

TABLE = Table(
  block="encoder.layer.{}.",
  layer={
    "norm1": "norm1",
    "norm2": "norm2",
    "attention/qkv": tuple(
      f"attention.attention.{name}" for name in ("query", "key", "value")
    ),
    "attention/out": "attention.output.dense",
  },
  top={
    "embed": "embeddings.patch_embeddings.projection",
    "final_norm": "layernorm",
  },
  leaves={"scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"},
)
MLP = {"mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"}
GATED = {
  ("mlp/gate", "mlp/up"): "mlp.weights_in", "mlp/down": "mlp.weights_out",
}  # fmt: skip
PATCH = "embeddings.patch_embeddings.projection.weight"
REGISTERS, TABLE_NAME = (
  "embeddings.register_tokens",
  "embeddings.position_embeddings",
)


def rows(model: Model, paths: Iterable[str]) -> list[Row]:
  """Class token, registers, and positions of all but the registers."""
  layer = {**TABLE.layer, **(GATED if model.ffn == "swiglu" else MLP)}
  table = dataclasses.replace(TABLE, layer=layer)
  found = mapping.rows(table, model, paths)
  found.append(mapping.tokens("embeddings.cls_token", "cls_token"))
  if model.registers:
    found.append(mapping.tokens(REGISTERS, "register_tokens"))
  return [*found, mapping.positions(TABLE_NAME, model, gap=model.registers)]


def read(shapes: Shapes, config: Mapping[str, Any]) -> Found:
  """Sizes off the arrays; heads, eps and activation off config.json."""
  if "classifier.weight" in shapes:
    raise UserError(
      "DINOv2 with a head on class token and mean patch together: the vit"
      " family pools one of them; import the backbone"
    )
  width, channels, *patch = shapes[PATCH].shape
  gated = "encoder.layer.0.mlp.weights_in.weight" in shapes
  up = "encoder.layer.0.mlp.fc1.weight"
  hidden = shapes[up].shape[0] if up in shapes else 4 * width
  if gated:
    hidden = shapes["encoder.layer.0.mlp.weights_in.weight"].shape[0] // 2
  registers = shapes[REGISTERS].shape[1] if REGISTERS in shapes else 0
  kwargs = {
    "num_classes": 0,
    "width": width,
    "depth": mapping.depth_of(shapes, r"encoder\.layer\.(\d+)\."),
    "mlp_dim": hidden,
    **mapping.heads_of(width, config),
    "patch_size": tuple(patch),
    "pool": "cls",
    "registers": registers,
    "prefix_position": True,
    "ffn": "swiglu" if gated else "gelu",
    "gelu": mapping.gelu_of(config.get("hidden_act", "gelu")),
    "norm_eps": config.get("layer_norm_eps", 1e-6),
    "layer_scale": 1.0,
  }
  side = mapping.side_of(shapes[TABLE_NAME].shape[1], 1, TABLE_NAME)
  return Found(kwargs, side, channels, rows)


LAYOUT = Layout(
  name="dinov2",
  what="Hugging Face DINOv2",
  marks=(
    r"(dinov2\w*\.)?embeddings\.patch_embeddings\.projection\.weight",
    r"(dinov2\w*\.)?encoder\.layer\.0\.layer_scale1\.lambda1",
  ),
  strip=r"dinov2\w*\.",
  left=r"embeddings\.mask_token",
  read=read,
)
RELEASED = dataclasses.replace(
  timm.LAYOUT,
  name="dinov2_released",
  what="DINOv2 as released",
  marks=(*timm.LAYOUT.marks, r"mask_token", r"blocks\.0\.ls1\.gamma"),
  left=r"mask_token",
  rename=(
    (r"^register_tokens$", "reg_token"), (r"\.w12\.", ".fc1."),
    (r"\.w3\.", ".fc2."),
  ),
)  # fmt: skip
