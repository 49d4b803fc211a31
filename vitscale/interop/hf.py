"""The Hugging Face model that computes what one of ours does.

class token                          ViTForImageClassification
class token and LayerScale           Dinov2Model, ...WithRegistersModel
attention pooling, no head           SiglipVisionModel
"""

from typing import Any

import numpy as np

from vitscale.core import tree
from vitscale.core.errors import UserError
from vitscale.interop import dinov2, hf_vit, mapping, siglip, timm
from vitscale.models.vit import Model
from vitscale.nn import patch as patch_lib
from vitscale.nn.block import per_layer
from vitscale.nn.layers import unstack_layers


def export(
  params: Any, model: Model, image: tuple[int, int, int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """State dict and config.json of the peer.

  Args:
    params: unboxed parameters of `model`.
    model: with layers of one size; computed positions become a table.
    image: (h, w, c).

  Raises:
    UserError: Hugging Face has no such model (the first option is named).
  """
  h, w, channels = image
  scaled, ph = model.layer_scale is not None, patch_lib.pair(model.patch_size)
  _refuse(timm.lacks(model) | {
    "pool 'mean'": model.pool == "mean",
    "qk_norm": model.qk_norm,
    "norm_pooled": model.norm_pooled,
    f"images of {h} x {w}": h != w,
    f"patches of {ph[0]} x {ph[1]}": ph[0] != ph[1],
  })  # fmt: skip
  config = {
    "hidden_size": model.width, "num_hidden_layers": model.depth,
    "num_attention_heads": per_layer(model.num_heads, model.depth, "heads")[0],
    "hidden_act": {"erf": "gelu", "tanh": "gelu_pytorch_tanh"}[model.gelu],
    "layer_norm_eps": model.norm_eps, "image_size": h, "patch_size": ph[0],
    "num_channels": channels, "dtype": "float32",
    "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0,
  }  # fmt: skip
  hidden = per_layer(model.mlp_dim, model.depth, "mlp_dim")[0]
  params = timm.with_table(unstack_layers(params), model, image)
  if model.pool == "map":
    return _siglip(params, model, config, hidden)
  return (_dinov2 if scaled else _vit)(params, model, config, hidden)


def _refuse(lacks: dict[str, bool], what: str = "") -> None:
  for name, lacking in lacks.items():
    if lacking:
      raise UserError(f"Hugging Face's {what or 'ViT'} has no {name}")


def _positioned(params: Any, model: Model) -> tuple[dict, Model]:
  """Every token in front with a position: zero where ours has none."""
  flat = tree.flatten(params)
  prefix = 1 + model.registers
  if "prefix_positions" not in flat:
    flat["prefix_positions"] = np.zeros((prefix, model.width), np.float32)
  return flat, model.clone(prefix_position=True)


def _vit(params: Any, model: Model, config: dict, hidden: int) -> Any:
  _refuse({
    f"ffn {model.ffn!r}": model.ffn != "gelu",
    "registers without layer_scale": bool(model.registers),
  })  # fmt: skip
  flat, model = _positioned(params, model)
  state = mapping.to_theirs(
    hf_vit.rows(model, flat), tree.unflatten(flat), model
  )
  head = ("classifier.weight", "classifier.bias")
  name = "ViTForImageClassification" if model.num_classes else "ViTModel"
  if model.num_classes:
    state = {k if k in head else f"vit.{k}": v for k, v in state.items()}
    label = {str(i): f"LABEL_{i}" for i in range(model.num_classes)}
    config |= {
      "id2label": label,
      "label2id": {v: int(k) for k, v in label.items()},
    }
  config |= {
    "architectures": [name], "model_type": "vit", "qkv_bias": True,
    "intermediate_size": hidden,
  }  # fmt: skip
  return state, config


def _dinov2(params: Any, model: Model, config: dict, hidden: int) -> Any:
  gated = model.ffn == "swiglu"
  # Theirs is computed of the ratio: a third less, in whole eights.
  ratio = (hidden - 0.5 if hidden % 8 else hidden) * 1.5 / model.width
  theirs = (int(int(model.width * ratio) * 2 / 3) + 7) // 8 * 8
  if not gated:
    ratio = theirs = (hidden + 0.5) / model.width
    theirs = int(model.width * ratio)
  _refuse({
    "head on the class token alone": bool(model.num_classes),
    f"hidden width {hidden} in SwiGLU": theirs != hidden,
  }, "DINOv2")  # fmt: skip
  flat, model = _positioned(params, model)
  if n := model.registers:
    # Theirs have no positions there: they are part of the token.
    flat = dict(flat)
    where = np.array(flat["prefix_positions"])
    flat["register_tokens"] = flat["register_tokens"] + where[1:]
    where[1:] = 0
    flat["prefix_positions"] = where
    config["num_register_tokens"] = n
  state = mapping.to_theirs(
    dinov2.rows(model, flat), tree.unflatten(flat), model
  )
  mask = np.zeros((1, model.width), np.float32)
  config |= {
    "architectures": ["Dinov2WithRegistersModel" if n else "Dinov2Model"],
    "model_type": "dinov2_with_registers" if n else "dinov2",
    "mlp_ratio": ratio, "use_swiglu_ffn": gated, "layerscale_value": 1.0,
    "qkv_bias": True,
  }  # fmt: skip
  return {**state, "embeddings.mask_token": mask}, config


def _siglip(params: Any, model: Model, config: dict, hidden: int) -> Any:
  _refuse({
    f"ffn {model.ffn!r}": model.ffn != "gelu",
    "registers": bool(model.registers),
    "layer_scale": model.layer_scale is not None,
    "head behind attention pooling": bool(model.num_classes),
  }, "SigLIP")  # fmt: skip
  flat = tree.flatten(params)
  state = mapping.to_theirs(
    siglip.rows(model, flat), tree.unflatten(flat), model
  )
  config |= {
    "architectures": ["SiglipVisionModel"],
    "model_type": "siglip_vision_model", "intermediate_size": hidden,
    "attention_dropout": 0.0, "vision_use_head": True,
  }  # fmt: skip
  # The name that transformers 4 stores; 5 takes it too.
  return {f"vision_model.{k}": v for k, v in state.items()}, config
