"""Weights of timm's VisionTransformer, both ways, by name.

A state dict is a dict of numpy arrays (`{k: v.numpy() for k, v in
model.state_dict().items()}`, or a safetensors file); torch is not needed.
Every name on either side has to be used, a difference is an error.

timm learns positions for class token and registers too, which only add to
the tokens: they are folded into these unless the model has
`prefix_position`. Not covered: packed SwiGLU, rotary and NaFlex variants.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes, tree
from vitscale.core.errors import UserError
from vitscale.models.vit import Model
from vitscale.nn import patch as patch_lib
from vitscale.nn.block import per_layer
from vitscale.nn.layers import stack_layers, unstack_layers
from vitscale.nn.position import Position

State = Mapping[str, np.ndarray]

# Ours -> theirs, and what kind of values they are.
_LAYER = {
  "norm1": ("norm1", "norm"),
  "norm2": ("norm2", "norm"),
  "attention/qkv": ("attn.qkv", "linear"),
  "attention/q_norm": ("attn.q_norm", "norm"),
  "attention/k_norm": ("attn.k_norm", "norm"),
  "attention/out": ("attn.proj", "linear"),
  "mlp/up": ("mlp.fc1", "linear"),
  "mlp/down": ("mlp.fc2", "linear"),
}
_GATED = {
  "mlp/gate": ("mlp.fc1_g", "linear"),
  "mlp/up": ("mlp.fc1_x", "linear"),
}
_TOP = {
  "embed": ("patch_embed.proj", "patch"),
  "final_norm": ("norm", "norm"),
  "head": ("head", "linear"),
  "map_head/q": ("attn_pool.q", "linear"),
  "map_head/kv": ("attn_pool.kv", "linear"),
  "map_head/out": ("attn_pool.proj", "linear"),
  "map_head/norm": ("attn_pool.norm", "norm"),
  "map_head/mlp/up": ("attn_pool.mlp.fc1", "linear"),
  "map_head/mlp/down": ("attn_pool.mlp.fc2", "linear"),
}
_LEAVES = {
  "scale1": "ls1.gamma",
  "scale2": "ls2.gamma",
  "map_head/probe": "attn_pool.latent",
}
_BLOCK = re.compile(r"encoder/block_(\d+)/(.+)")


def from_timm(state: State, model: Model, abstract: Any) -> dict[str, Any]:
  """Parameters of `model` with the values of a timm state dict.

  Args:
    state: name -> array.
    model: sized as the timm model, with `gelu="erf"`.
    abstract: its unboxed parameter shapes at the image size of the state's
      position table (`jax.eval_shape` of init, then `axes.unbox`).

  Returns:
    Nested dict of float32 numpy arrays, scanned if `abstract` is.

  Raises:
    UserError: names or shapes differ (- what the model lacks in the state,
      + what the state has beyond the model).
  """
  shapes = tree.flatten(unstack_layers(abstract))
  rows = {path: _theirs(path, model) for path in shapes}
  given = _split_tokens(state, shapes)
  _check_names({theirs for theirs, _ in rows.values()}, set(given))
  out = {}
  for path, (theirs, kind) in rows.items():
    value = np.asarray(given[theirs], np.float32)
    if kind == "linear":
      value = value.T
    elif kind == "patch":
      value = value.transpose(2, 3, 1, 0)
    shape = tuple(shapes[path].shape)
    if value.size != np.prod(shape):
      raise UserError(
        f"timm's {theirs} {value.shape} does not fit {path} {shape}"
      )
    out[path] = value.reshape(shape)
  params = tree.unflatten(out)
  scanned = "blocks" in abstract["encoder"]
  return stack_layers(params) if scanned else params


def to_timm(
  params: Any,
  model: Model,
  *,
  class_token: bool = False,
  embed_prefix: bool = True,
  channels: int = 3,
) -> dict[str, np.ndarray]:
  """The state dict of the timm model that computes what `model` does.

  Args:
    params: unboxed parameters of `model`.
    model: with learned positions and tokens pooled by "cls", "mean" or "map".
    class_token: the first register becomes timm's class token (with
      `global_pool="avg"` timm keeps one and does not pool it).
    embed_prefix: timm's `no_embed_class=False`, a position for class token
      and registers too (zero if the model has none).
    channels: of the image.
  """
  flat = tree.flatten(unstack_layers(params))
  flat = {path: np.asarray(x, np.float32) for path, x in flat.items()}
  state: dict[str, np.ndarray] = {}
  for path, value in flat.items():
    theirs, kind = _theirs(path, model)
    if kind == "linear":
      inputs = 2 if path.endswith("out/kernel") else 1
      value = value.reshape(np.prod(value.shape[:inputs]), -1).T
    elif kind == "patch":
      ph, pw = patch_lib.pair(model.patch_size)
      value = value.reshape(ph, pw, channels, -1).transpose(3, 2, 0, 1)
    elif kind == "vector":
      value = value.reshape(-1)
    state[theirs] = value
  table = state.pop("positions/table")
  table = table.reshape(-1, table.shape[-1])
  if class_token and "cls_token" not in state:
    cls, rest = np.split(state.pop("register_tokens"), [1])
    state["cls_token"] = cls
    if len(rest):
      state["register_tokens"] = rest
  tokens = {"cls_token": "cls_token", "register_tokens": "reg_token"}
  prefix = [state[name] for name in tokens if name in state]
  for ours, theirs in tokens.items():
    if ours in state:
      state[theirs] = state.pop(ours)[None]
  if prefix and embed_prefix:
    zeros = np.zeros_like(np.concatenate(prefix))
    table = np.concatenate([state.pop("prefix_positions", zeros), table])
  if "attn_pool.latent" in state:
    state["attn_pool.latent"] = state["attn_pool.latent"].reshape(1, 1, -1)
  return {**state, "pos_embed": table[None]}


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
  hidden, heads = (
    set(per_layer(getattr(model, name), model.depth, name))
    for name in ("mlp_dim", "num_heads")
  )
  lacks = {
    "hidden widths that differ between layers": len(hidden) > 1,
    "numbers of heads that differ between layers": len(heads) > 1,
    "heads whose widths don't add up to the width": (
      max(heads) * (model.head_dim or 0) not in (0, model.width)
    ),
    "out_dim": model.out_dim not in (None, model.width),
    f"ffn {model.ffn!r}": model.ffn != "gelu",
    f"norm {model.norm!r}": model.norm != "layernorm",
    f"norm_eps {model.norm_eps}": model.norm_eps != 1e-6,
    "bias=False": not model.bias,
    f"position {model.position!r}": model.position == "rope2d",
  }
  found = [name for name, lacking in lacks.items() if lacking]
  if found:
    raise UserError(f"timm's VisionTransformer has no {found[0]}")
  patch = patch_lib.pair(model.patch_size)
  flat = tree.flatten(params)
  own = {k: v for k, v in flat.items() if k.startswith("positions/")}
  blank = jnp.zeros((1, *patch_lib.grid_of((h, w), patch), model.width))
  unit = patch_lib.pair(model.position_patch or patch)
  scale = patch[0] / unit[0], patch[1] / unit[1]
  table = Position(model.position).apply(
    {"params": tree.unflatten(own).get("positions", {})}, blank, scale
  )
  rest = {k: v for k, v in flat.items() if k not in own}
  cls = model.pool == "cls"
  kwargs = {
    "img_size": [h, w], "patch_size": list(patch), "in_chans": channels,
    "num_classes": model.num_classes, "embed_dim": model.width,
    "depth": model.depth, "num_heads": max(heads),
    "mlp_ratio": (max(hidden) + 0.5) / model.width,  # timm rounds down
    "qk_norm": model.qk_norm,
    "init_values": None if model.layer_scale is None else 1.0,
    "class_token": cls, "reg_tokens": model.registers,
    "no_embed_class": not model.prefix_position,
    "global_pool": {"cls": "token", "mean": "avg", "map": "map"}[model.pool],
    "fc_norm": model.norm_pooled,
    "act_layer": {"erf": "gelu", "tanh": "gelu_tanh"}[model.gelu],
  }  # fmt: skip
  state = to_timm(
    tree.unflatten({**rest, "positions/table": table[0]}), model,
    embed_prefix=model.prefix_position, channels=channels,
  )  # fmt: skip
  return state, kwargs


def load(
  state: State, *, num_heads: int, **kwargs: Any
) -> tuple[Model, dict[str, Any]]:
  """Model and variables of a timm state dict.

  Args:
    state: name -> array.
    num_heads: the one number the arrays do not tell.
    **kwargs: of `Model`, winning over what is read off the arrays (for
      example `scan=True`, `dtype="bfloat16"`, `gelu="tanh"`).
  """
  read, image = hyper(state)
  model = Model(**{**read, "num_heads": num_heads, **kwargs})
  image = jax.ShapeDtypeStruct((1, *image), jnp.float32)
  abstract = axes.unbox(jax.eval_shape(model.init, jax.random.key(0), image))
  return model, {"params": from_timm(state, model, abstract["params"])}


def hyper(state: State) -> tuple[dict[str, Any], tuple[int, int, int]]:
  """Keyword arguments of `Model` (without num_heads) and the image shape.

  A square grid of patches is assumed, and timm's habit that a class token is
  pooled unless there is an attention pool or an `fc_norm`.
  """
  if "patch_embed.proj.weight" not in state:
    raise UserError(
      "no timm VisionTransformer: 'patch_embed.proj.weight' is missing"
    )
  width, channels, ph, pw = state["patch_embed.proj.weight"].shape
  has = lambda *names: all(name in state for name in names)
  pooled = has("fc_norm.weight")
  pool = "map" if has("attn_pool.latent") else "cls"
  if pooled or (pool == "cls" and not has("cls_token")):
    pool = "mean"
  prefix = sum(state[n].shape[1] for n in ("cls_token", "reg_token") if has(n))
  n = state["pos_embed"].shape[1]
  side = math.isqrt(n)
  embedded = side * side != n
  side = math.isqrt(n - prefix) if embedded else side
  gated = has("blocks.0.mlp.fc1_g.weight")
  up = "blocks.0.mlp.fc1_x.weight" if gated else "blocks.0.mlp.fc1.weight"
  kwargs = {
    "num_classes": len(state["head.weight"]) if has("head.weight") else 0,
    "width": width,
    "depth": len([k for k in state if k.endswith(".attn.qkv.weight")]),
    "mlp_dim": len(state[up]),
    "patch_size": (ph, pw),
    "pool": pool,
    "registers": prefix - (pool == "cls"),
    "prefix_position": embedded,
    "norm_pooled": pooled,
    "ffn": "swiglu" if gated else "gelu",
    "gelu": "erf",
    "qk_norm": has("blocks.0.attn.q_norm.weight"),
    "bias": has("blocks.0.attn.qkv.bias"),
    "layer_scale": 1.0 if has("blocks.0.ls1.gamma") else None,
  }
  return kwargs, (side * ph, side * pw, channels)


# --------------------------------------------------------------------- names


def _theirs(path: str, model: Model) -> tuple[str, str]:
  """Our path -> timm's name and the kind of values."""
  start, table, rest = "", _TOP, path
  if found := _BLOCK.fullmatch(path):
    start, rest = f"blocks.{int(found[1])}.", found[2]
    table = {**_LAYER, **(_GATED if model.ffn == "swiglu" else {})}
  if rest in _LEAVES:
    return start + _LEAVES[rest], "vector"
  parent, _, leaf = rest.rpartition("/")
  if parent not in table:
    return path, "same"  # positions and tokens, see `_split_tokens`
  name, kind = table[parent]
  if parent == "final_norm" and model.norm_pooled:
    name = "fc_norm"
  name = f"{start}{name}.{'bias' if leaf == 'bias' else 'weight'}"
  return name, kind if leaf == "kernel" else "vector"


def _split_tokens(
  state: State, shapes: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """The state with cls_token, reg_token and pos_embed cut as ours are."""
  given = dict(state)
  tokens = [given.pop(k)[0] for k in ("cls_token", "reg_token") if k in given]
  prefix = sum(map(len, tokens))
  if "pos_embed" in given and "positions/table" in shapes:
    table = given.pop("pos_embed")[0]
    *grid, _ = shapes["positions/table"].shape
    front = len(table) - math.prod(grid)
    if front not in (0, prefix):
      raise UserError(
        f"timm's pos_embed has {len(table)} entries, the model a grid of"
        f" {grid[0]} x {grid[1]} and {prefix} tokens in front: initialise it"
        " at the image size of the state"
      )
    given["positions/table"] = table[front:]
    if front and "prefix_positions" in shapes:
      given["prefix_positions"] = table[:front]
    elif front:
      tokens = [np.concatenate(tokens) + table[:front]]
  both = np.concatenate(tokens) if tokens else np.zeros((0, 0))
  cut = len(both) and "cls_token" in shapes
  parts = {"cls_token": both[: int(cut)], "register_tokens": both[int(cut) :]}
  return {**given, **{name: x for name, x in parts.items() if len(x)}}


def _check_names(wanted: set[str], given: set[str]) -> None:
  if wanted == given:
    return
  lines = [f"-{name}" for name in sorted(wanted - given)]
  lines += [f"+{name}" for name in sorted(given - wanted)]
  more = f" and {len(lines) - 12} more" if len(lines) > 12 else ""
  raise UserError(
    "timm state and model differ (- the state lacks, + the model lacks):"
    f" {' '.join(lines[:12])}{more}"
  )
