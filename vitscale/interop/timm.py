"""Weights of timm's VisionTransformer, both ways, by name.

A state dict is a dict of numpy arrays (`{k: v.numpy() for k, v in
model.state_dict().items()}`, or a safetensors file); torch is not needed.
Every name on either side has to be used, a difference is an error. Not
covered: two heads (DeiT's distillation), rotary and NaFlex variants.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes, tree
from vitscale.core.errors import UserError
from vitscale.interop import mapping
from vitscale.interop.mapping import Found, Layout, Row, Shapes, Table
from vitscale.models.vit import Model
from vitscale.nn import patch as patch_lib
from vitscale.nn.block import per_layer
from vitscale.nn.layers import unstack_layers
from vitscale.nn.position import Position

State = Mapping[str, np.ndarray]

TABLE = Table(
  block="blocks.{}.",
  layer={
    "norm1": "norm1",
    "norm2": "norm2",
    "attention/qkv": "attn.qkv",
    "attention/q_norm": "attn.q_norm",
    "attention/k_norm": "attn.k_norm",
    "attention/out": "attn.proj",
    "mlp/down": "mlp.fc2",
  },
  top={
    "embed": "patch_embed.proj",
    "head": "head",
    "map_head/q": "attn_pool.q",
    "map_head/kv": "attn_pool.kv",
    "map_head/out": "attn_pool.proj",
    "map_head/norm": "attn_pool.norm",
    "map_head/mlp/up": "attn_pool.mlp.fc1",
    "map_head/mlp/down": "attn_pool.mlp.fc2",
  },
  leaves={"scale1": "ls1.gamma", "scale2": "ls2.gamma"},
)
# Architectures of timm whose GELU is the approximation.
_TANH = re.compile(
  r"patch32_siglip|large_patch16_siglip(_gap)?_512|so400m_patch16|giantopt"
)
MIXERS: dict[str, dict[mapping.Names, mapping.Names]] = {
  "plain": {"mlp/up": "mlp.fc1"},
  "gated": {"mlp/gate": "mlp.fc1_g", "mlp/up": "mlp.fc1_x"},
  "packed": {("mlp/gate", "mlp/up"): "mlp.fc1"},
}


def rows(
  model: Model,
  paths: Iterable[str],
  *,
  mixer: str = "plain",
  class_token: bool = False,
  gap: bool = False,
) -> list[Row]:
  """The rows of timm's VisionTransformer.

  Args:
    model, paths: as of `Found.rows`.
    mixer: key of MIXERS.
    class_token: the first register is timm's class token.
    gap: of the tokens in front, the first alone has a position.
  """
  paths = set(paths)
  norm = {"final_norm": "fc_norm" if model.norm_pooled else "norm"}
  table = dataclasses.replace(
    TABLE, layer=TABLE.layer | MIXERS[mixer], top=TABLE.top | norm
  )
  found = mapping.rows(table, model, paths)
  if model.pool == "cls":
    found.append(mapping.tokens("cls_token", "cls_token"))
  rest = model.registers - class_token
  names, sizes = ["cls_token"] * class_token, [1] * class_token
  if rest > 0:
    names, sizes = [*names, "reg_token"], [*sizes, rest]
  if names:
    found.append(
      mapping.tokens(tuple(names), "register_tokens", sizes=tuple(sizes))
    )
  if "map_head/probe" in paths:
    found.append(mapping.tokens("attn_pool.latent", "map_head/probe"))
  front = model.registers * gap
  return [*found, mapping.positions("pos_embed", model, gap=front)]


def read(shapes: Shapes, config: Mapping[str, Any]) -> Found:
  """Sizes off the arrays; config.json may say heads, activation and pool.

  A square grid of patches is assumed, and timm's habit that a class token is
  pooled unless there is an attention pool or an `fc_norm`.
  """
  if "head_dist.weight" in shapes or "dist_token" in shapes:
    raise UserError(
      "timm DeiT with a head on its distillation token: the vit family has one"
      " head; bring the model without distillation"
    )
  has = lambda name: name in shapes
  args = {**config.get("model_args", {})}
  width, channels, ph, pw = shapes["patch_embed.proj.weight"].shape
  pooled = has("fc_norm.weight")
  said = args.get("global_pool", config.get("global_pool"))
  pool = "map" if has("attn_pool.latent") else "cls"
  if pooled or (pool == "cls" and (not has("cls_token") or said == "avg")):
    pool = "mean"
  tokens = ("cls_token", "reg_token")
  prefix = sum(shapes[n].shape[1] for n in tokens if has(n))
  n = shapes["pos_embed"].shape[1]
  square = lambda m: m > 0 and math.isqrt(m) ** 2 == m
  gap = not square(n) and prefix > 1 and square(n - 1)
  front = 0 if square(n) else 1 if gap else prefix
  mixer, up = "plain", "blocks.0.mlp.fc1.weight"
  hidden = shapes[up].shape[0] if has(up) else 0
  if has("blocks.0.mlp.fc1_g.weight"):
    mixer, hidden = "gated", shapes["blocks.0.mlp.fc1_x.weight"].shape[0]
  down = "blocks.0.mlp.fc2.weight"
  if hidden and has(down) and hidden == 2 * shapes[down].shape[1]:
    mixer, hidden = "packed", hidden // 2
  heads = {"num_attention_heads": args.get("num_heads")}
  class_token = has("cls_token") and pool != "cls"
  act = args.get("act_layer") or _act(config.get("architecture", ""))
  kwargs = {
    "num_classes": shapes["head.weight"].shape[0] if has("head.weight") else 0,
    "width": width,
    "depth": mapping.depth_of(shapes, r"blocks\.(\d+)\."),
    "mlp_dim": hidden or 4 * width,
    **mapping.heads_of(width, heads),
    "patch_size": (ph, pw),
    "pool": pool,
    "registers": prefix - (pool == "cls"),
    "prefix_position": front > 0,
    "norm_pooled": pooled,
    "ffn": "gelu" if mixer == "plain" else "swiglu",
    "gelu": mapping.gelu_of(act),
    "qk_norm": has("blocks.0.attn.q_norm.weight"),
    "bias": has("blocks.0.attn.qkv.bias"),
    "layer_scale": 1.0 if has("blocks.0.ls1.gamma") else None,
  }
  how = {"mixer": mixer, "class_token": class_token, "gap": gap}
  side = mapping.side_of(n, front, "pos_embed")
  return Found(kwargs, side, channels, functools.partial(rows, **how))


def _act(architecture: str) -> str:
  """timm's activation of an architecture; weights do not tell."""
  return "gelu_tanh" if _TANH.search(architecture) else "gelu"


LAYOUT = Layout(
  name="timm",
  what="timm ViT",
  marks=(r"patch_embed\.proj\.weight", r"blocks\.0\.attn\.qkv\.weight",
         r"pos_embed"),
  read=read,
  preprocess=dataclasses.replace(mapping.HALF, share=0.9),
)  # fmt: skip


def load(
  state: State, *, num_heads: int, **kwargs: Any
) -> tuple[Model, dict[str, Any]]:
  """Model and variables of a timm state dict.

  Args:
    state: name -> array.
    num_heads: the one number the arrays do not tell.
    **kwargs: of `Model`, winning over what is read off the arrays (for
      example `scan=True`, `dtype="bfloat16"`, `gelu="tanh"`).

  Raises:
    UserError: names or shapes differ.
  """
  if "patch_embed.proj.weight" not in state:
    raise UserError(
      "no timm VisionTransformer: 'patch_embed.proj.weight' is missing"
    )
  found = read(state, {})
  model = Model(**{**found.kwargs, "num_heads": num_heads, **kwargs})
  h, w = (found.side * p for p in patch_lib.pair(model.patch_size))
  image = jax.ShapeDtypeStruct((1, h, w, found.channels), jnp.float32)
  abstract = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  paths = tree.flatten(unstack_layers(abstract["params"]))
  params = mapping.to_ours(
    found.rows(model, paths), state, state.__getitem__, model,
    abstract["params"], "of timm",
  )  # fmt: skip
  return model, {"params": params}


def to_timm(
  params: Any, model: Model, *, class_token: bool = False
) -> dict[str, np.ndarray]:
  """The state dict of the timm model that computes what `model` does.

  Args:
    params: unboxed parameters of `model`.
    model: with learned positions and tokens pooled by "cls", "mean" or "map".
    class_token: the first register becomes timm's class token (with
      `global_pool="avg"` timm keeps one and does not pool it).
  """
  mixer = "gated" if model.ffn == "swiglu" else "plain"
  paths = tree.flatten(unstack_layers(params))
  made = rows(model, paths, mixer=mixer, class_token=class_token)
  return mapping.to_theirs(made, params, model)


def with_table(params: Any, model: Model, image: tuple[int, ...]) -> Any:
  """The parameters with a table of positions at the grid of `image`."""
  patch = patch_lib.pair(model.patch_size)
  flat = tree.flatten(params)
  own = {k: v for k, v in flat.items() if k.startswith("positions/")}
  grid = patch_lib.grid_of(tuple(image[:2]), patch)
  unit = patch_lib.pair(model.position_patch or patch)
  scale = patch[0] / unit[0], patch[1] / unit[1]
  table = Position(model.position).apply(
    {"params": tree.unflatten(own).get("positions", {})},
    jnp.zeros((1, *grid, model.width)), scale,
  )  # fmt: skip
  rest = {k: v for k, v in flat.items() if k not in own}
  return tree.unflatten({**rest, "positions/table": np.asarray(table[0])})


def lacks(model: Model) -> dict[str, bool]:
  """What no peer of the vit family has, and whether `model` has it."""
  hidden, heads = _sizes(model)
  return {
    "hidden widths that differ between layers": len(hidden) > 1,
    "numbers of heads that differ between layers": len(heads) > 1,
    "heads whose widths don't add up to the width": (
      max(heads) * (model.head_dim or 0) not in (0, model.width)
    ),
    "out_dim": model.out_dim not in (None, model.width),
    f"norm {model.norm!r}": model.norm != "layernorm",
    "bias=False": not model.bias,
    f"position {model.position!r}": model.position in ("rope2d", "glpe"),
    f"mixer {model.mixer!r}": model.mixer != "softmax",
    "vocabulary": model.vocabulary is not None,
  }


def _sizes(model: Model) -> tuple[set[int], set[int]]:
  hidden, heads = (
    set(per_layer(getattr(model, name), model.depth, name))
    for name in ("mlp_dim", "num_heads")
  )
  return hidden, heads


def export(
  params: Any, model: Model, image: tuple[int, int, int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """`VisionTransformer(**kwargs)` of timm that computes what `model` does.

  Args:
    params: unboxed parameters of `model`.
    model: with layers of one size; positions that are computed become a table.
    image: (h, w, c).

  Returns:
    Its state dict, and `kwargs`, which are JSON-ready.

  Raises:
    UserError: timm's model has no such option (the first one is named).
  """
  h, w, channels = image
  missing = lacks(model) | {
    f"ffn {model.ffn!r}": model.ffn != "gelu",
    f"norm_eps {model.norm_eps}": model.norm_eps != 1e-6,
  }
  for name, lacking in missing.items():
    if lacking:
      raise UserError(f"timm's VisionTransformer has no {name}")
  hidden, heads = _sizes(model)
  kwargs = {
    "img_size": [h, w], "patch_size": list(patch_lib.pair(model.patch_size)),
    "in_chans": channels,
    "num_classes": model.num_classes, "embed_dim": model.width,
    "depth": model.depth, "num_heads": max(heads),
    "mlp_ratio": (max(hidden) + 0.5) / model.width,  # timm rounds down
    "qk_norm": model.qk_norm,
    "init_values": None if model.layer_scale is None else 1.0,
    "class_token": model.pool == "cls", "reg_tokens": model.registers,
    "no_embed_class": not model.prefix_position,
    "global_pool": {"cls": "token", "mean": "avg", "map": "map"}[model.pool],
    "fc_norm": model.norm_pooled,
    "act_layer": {"erf": "gelu", "tanh": "gelu_tanh"}[model.gelu],
  }  # fmt: skip
  return to_timm(with_table(params, model, image), model), kwargs
