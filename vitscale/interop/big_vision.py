"""big_vision's ViT in npz, and the files of the first ViT release.

Looped (`encoderblock_0`) or scanned (`encoderblock`, all layers in one array);
pooled by class token, mean or MAP. Of a two-tower file the image tower is
read. Without stored positions they are the sines of MoCo v3, as ours.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from vitscale.core.errors import UserError
from vitscale.interop import mapping
from vitscale.interop.mapping import Found, Layout, Row, Shapes, Table
from vitscale.models.vit import Model

_ATTENTION = "MultiHeadDotProductAttention_0"
TABLE = Table(
  flax=True,
  block="Transformer/encoderblock_{}/",
  layer={
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_1",
    "attention/qkv": tuple(
      f"{_ATTENTION}/{name}" for name in ("query", "key", "value")
    ),
    "attention/out": f"{_ATTENTION}/out",
    "mlp/up": "MlpBlock_0/Dense_0",
    "mlp/down": "MlpBlock_0/Dense_1",
  },
  top={
    "embed": "embedding",
    "final_norm": "Transformer/encoder_norm",
    "head": "head",
    "map_head/q": f"MAPHead_0/{_ATTENTION}/query",
    "map_head/kv": tuple(
      f"MAPHead_0/{_ATTENTION}/{name}" for name in ("key", "value")
    ),
    "map_head/out": f"MAPHead_0/{_ATTENTION}/out",
    "map_head/norm": "MAPHead_0/LayerNorm_0",
    "map_head/mlp/up": "MAPHead_0/MlpBlock_0/Dense_0",
    "map_head/mlp/down": "MAPHead_0/MlpBlock_0/Dense_1",
  },
)
POSITIONS = "pos_embedding"


def rows(model: Model, paths: Iterable[str]) -> list[Row]:
  """The table, and class token, positions and probe that the model has."""
  paths = set(paths)
  found = mapping.rows(TABLE, model, paths)
  if model.pool == "cls":
    found.append(mapping.tokens("cls", "cls_token"))
  if model.position == "learned":
    found.append(mapping.positions(POSITIONS, model))
  if "map_head/probe" in paths:
    found.append(mapping.tokens("MAPHead_0/probe", "map_head/probe"))
  return found


def read(shapes: Shapes, config: Mapping[str, Any]) -> Found:
  """Everything is in the arrays, but for sines of an unknown image."""
  del config
  *patch, channels, width = shapes["embedding/kernel"].shape
  q = shapes[f"Transformer/encoderblock_0/{_ATTENTION}/query/kernel"].shape
  cls, probe = "cls" in shapes, "MAPHead_0/probe" in shapes
  if "pre_logits/kernel" in shapes:
    raise UserError(
      "big_vision model with a hidden layer before its head (rep_size): the"
      " vit family has none"
    )
  side, prefix = None, 0
  if POSITIONS in shapes:
    n = shapes[POSITIONS].shape[1]
    prefix = int(cls and (n - 1) == int((n - 1) ** 0.5) ** 2)
    side = mapping.side_of(n, prefix, POSITIONS)
  name = "Transformer/encoderblock_0/MlpBlock_0/Dense_0/kernel"
  kwargs = {
    "num_classes": shapes["head/bias"].shape[0] if "head/bias" in shapes else 0,
    "width": width,
    "depth": mapping.depth_of(shapes, r"Transformer/encoderblock_(\d+)/"),
    "mlp_dim": shapes[name].shape[-1],
    "num_heads": q[1],
    "head_dim": q[2] if q[1] * q[2] != width else None,
    "patch_size": tuple(patch),
    "pool": "map" if probe else "cls" if cls else "mean",
    "position": "learned" if POSITIONS in shapes else "sincos2d",
    "prefix_position": bool(prefix),
    "gelu": "tanh",
    "norm_eps": 1e-6,
  }
  return Found(kwargs, side, channels, rows)


LAYOUT = Layout(
  name="big_vision",
  what="big_vision ViT",
  marks=(
    r"(.*/)?embedding/kernel",
    r"(.*/)?Transformer/encoderblock(_0)?/LayerNorm_0/scale",
  ),
  strip=r"(params/)?(img/)?",
  left=r"(opt|states|extra|txt|params/txt)/.*|t|b|step|Transformer/rng.*",
  rename=(
    (r"encoderblock(_\d+)?/LayerNorm_2/", r"encoderblock\1/LayerNorm_1/"),
    (r"DotProductAttention_1/", r"DotProductAttention_0/"),
    (r"(encoderblock\w*)/MlpBlock_3/", r"\1/MlpBlock_0/"),
    (r"^Transformer/posembed_input/pos_embedding$", POSITIONS),
  ),
  unstack=("Transformer/encoderblock/", "Transformer/encoderblock_{}/"),
  read=read,
  preprocess=mapping.HALF,
)
