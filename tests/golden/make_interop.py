"""Makes interop.npz: toy vision transformers of peers, weights and outputs.

    pip install torch timm transformers && python tests/golden/make_interop.py

Run by hand when a case is added; the tests read the arrays and need none of
these. Keys: `<case>/state` (all weights in one row, half precision),
`<case>/facts` (JSON: shapes by name, in order, and config), `<case>/out`
(logits, or pooled features where there is no head), `image` (2, 8, 8, 3),
normalised.
Hugging Face's models, timm's and the released DINOv2 and MAE names are computed
by those packages; big_vision has no package, its formula is written below.
"""

import json
import pathlib
import tempfile

import numpy as np
import timm
import torch
import transformers as hf
from safetensors.torch import load_file

SIZE = {
  "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
  "image_size": 8, "patch_size": 4,
}  # fmt: skip
WIDE = {**SIZE, "intermediate_size": 24}


def random(model) -> None:
  """Weights so large that no term hides, and halves, which compress."""
  with torch.no_grad():
    for name, p in model.named_parameters():
      ones = name.endswith(("norm.weight", "gamma", "lambda1"))
      p.copy_((1.0 * ones + 0.3 * torch.randn_like(p)).half())
  model.eval()


def hugging_face(image):
  """Case -> (model, how its output is read)."""
  logits, first = lambda y: y.logits, lambda y: y.last_hidden_state[:, 0]
  decoder = {
    "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 8,
    "mask_ratio": 0.0,
  }  # fmt: skip
  dino = {**SIZE, "mlp_ratio": 2}
  cases = {
    "hf_vit": (hf.ViTForImageClassification(hf.ViTConfig(**WIDE, num_labels=5)),
               logits),
    "hf_deit": (
      hf.DeiTForImageClassification(
        hf.DeiTConfig(**WIDE, num_labels=5, hidden_act="gelu_new")
      ),
      logits,
    ),
    "dinov2": (hf.Dinov2Model(hf.Dinov2Config(**dino)), first),
    "dinov2_swiglu": (
      hf.Dinov2Model(hf.Dinov2Config(**dino, use_swiglu_ffn=True)), first,
    ),
    "dinov2_registers": (
      hf.Dinov2WithRegistersModel(
        hf.Dinov2WithRegistersConfig(**dino, num_register_tokens=3)
      ),
      first,
    ),
    "siglip": (hf.SiglipVisionModel(hf.SiglipVisionConfig(**WIDE)),
               lambda y: y.pooler_output),
    "mae": (hf.ViTMAEForPreTraining(hf.ViTMAEConfig(**WIDE, **decoder)), None),
  }  # fmt: skip
  for case, (model, out) in cases.items():
    random(model)
    if case == "mae":
      # The encoder alone, of all patches in their order.
      encoder, noise = model.vit, torch.arange(4.0)[None].tile(2, 1)
      y = encoder(image, noise=noise).last_hidden_state[:, 0]
    else:
      y = out(model(image))
    # As stored: names in memory are others in transformers 5.
    with tempfile.TemporaryDirectory() as folder:
      model.save_pretrained(folder)
      path = pathlib.Path(folder)
      state = load_file(path / "model.safetensors")
      config = json.loads((path / "config.json").read_text())
    yield case, state, config, y


def of_timm(image):
  """Names of timm, and of files that were released in names like timm's."""
  toy = {
    "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2,
    "num_heads": 2, "mlp_ratio": 1.5, "num_classes": 0,
  }  # fmt: skip
  vit = timm.models.vision_transformer.VisionTransformer
  args = {"model_args": {"num_heads": 2}}
  for case, more in {
    "timm_packed": {
      "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU,
      "init_values": 1.0, "reg_tokens": 2, "no_embed_class": True,
    },
    "timm_avg": {"global_pool": "avg", "fc_norm": False, "num_classes": 5},
    "mae_released": {},
    "dinov2_released": {
      "mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU,
      "init_values": 1.0,
    },
  }.items():  # fmt: skip
    model = vit(**{**toy, **more})
    random(model)
    state = dict(model.state_dict())
    pool = {"global_pool": "avg"} if case == "timm_avg" else {}
    if case == "mae_released":
      state["decoder_embed.weight"] = torch.zeros(8, 16)
      state["mask_token"] = torch.zeros(1, 1, 8)
    if case == "dinov2_released":
      state = {
        k.replace(".fc1.", ".w12.").replace(".fc2.", ".w3."): v
        for k, v in state.items()
      }
      state["mask_token"] = torch.zeros(1, 16)
    yield case, state, {**args, **pool}, model(image)


# ---------------------------------------------------------------- big_vision


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(p, x):
  x = x - x.mean(-1, keepdims=True)
  return (
    x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]
  )


def attention(p, q, x):
  """(n, d) tokens read by (m, d) queries, head by head."""
  out = 0.0
  for h in range(p["query"]["kernel"].shape[1]):
    q_h, k_h, v_h = (
      of @ p[name]["kernel"][:, h] + p[name]["bias"][h]
      for name, of in (("query", q), ("key", x), ("value", x))
    )
    a = q_h @ k_h.T / np.sqrt(k_h.shape[1])
    a = np.exp(a - a.max(-1, keepdims=True))
    a = a / a.sum(-1, keepdims=True)
    out = out + a @ v_h @ p["out"]["kernel"][h]
  return out + p["out"]["bias"]


def mlp(p, x):
  h = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
  return h @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def sines(side, width):
  """MoCo v3's table, column first."""
  y, x = np.mgrid[:side, :side].reshape(2, -1, 1)
  omega = 1e4 ** -(np.arange(width // 4) / (width // 4 - 1))
  parts = [np.sin(x * omega), np.cos(x * omega), np.sin(y * omega),
           np.cos(y * omega)]  # fmt: skip
  return np.concatenate(parts, -1)


def big_vision(p, image):
  """One image (h, w, c) to logits, or the pooled token without a head."""
  k = p["embedding"]["kernel"]
  ph, pw, _, d = k.shape
  tokens = [
    np.tensordot(image[i : i + ph, j : j + pw], k, 3) + p["embedding"]["bias"]
    for i in range(0, image.shape[0], ph)
    for j in range(0, image.shape[1], pw)
  ]
  x = np.stack(tokens)
  table = p["pos_embedding"][0] if "pos_embedding" in p else sines(2, d)
  x = x + table
  if "cls" in p:
    x = np.concatenate([p["cls"][0], x])
  for i in range(2):
    b = p["Transformer"][f"encoderblock_{i}"]
    y = norm(b["LayerNorm_0"], x)
    x = x + attention(b["MultiHeadDotProductAttention_0"], y, y)
    x = x + mlp(b["MlpBlock_0"], norm(b["LayerNorm_1"], x))
  x = norm(p["Transformer"]["encoder_norm"], x)
  if "MAPHead_0" in p:
    m = p["MAPHead_0"]
    y = attention(m["MultiHeadDotProductAttention_0"], m["probe"][0], x)
    x = (y + mlp(m["MlpBlock_0"], norm(m["LayerNorm_0"], y)))[0]
  else:
    x = x[0] if "cls" in p else x.mean(0)
  return x @ p["head"]["kernel"] + p["head"]["bias"] if "head" in p else x


def flax_weights(rng, *, cls=False, probe=False, head=0, table=True):
  """Random parameters of big_vision's tree, flat."""
  d, h, m = 16, 2, 24
  shapes = {"embedding": (4, 4, 3, d)}
  att = {"query": (d, h, 8), "key": (d, h, 8), "value": (d, h, 8),
         "out": (h, 8, d)}  # fmt: skip
  blocks = [f"Transformer/encoderblock_{i}" for i in range(2)]
  norms = ["Transformer/encoder_norm"]
  for b in blocks + ["MAPHead_0"] * probe:
    shapes |= {f"{b}/MultiHeadDotProductAttention_0/{k}": s
               for k, s in att.items()}  # fmt: skip
    shapes |= {f"{b}/MlpBlock_0/Dense_0": (d, m)}
    shapes |= {f"{b}/MlpBlock_0/Dense_1": (m, d)}
    norms += [f"{b}/LayerNorm_0"] + [f"{b}/LayerNorm_1"] * (b in blocks)
  if head:
    shapes["head"] = (d, head)
  draw = lambda *s: (0.3 * rng.normal(size=s)).astype("f2").astype("f4")
  flat = {}
  for name, s in shapes.items():
    heads = s[1:] if name.endswith(("query", "key", "value")) else s[-1:]
    flat |= {f"{name}/kernel": draw(*s), f"{name}/bias": draw(*heads)}
  for name in norms:
    ones = (1 + draw(d)).astype("f2").astype("f4")
    flat |= {f"{name}/scale": ones, f"{name}/bias": draw(d)}
  flat |= {"pos_embedding": draw(1, 4, d)} if table else {}
  flat |= {"cls": draw(1, 1, d)} if cls else {}
  flat |= {"MAPHead_0/probe": draw(1, 1, d)} if probe else {}
  return flat


def nested(flat):
  out = {}
  for name, x in flat.items():
    *parents, leaf = name.split("/")
    node = out
    for key in parents:
      node = node.setdefault(key, {})
    node[leaf] = x.astype(np.float64)
  return out


def of_big_vision(image):
  rng = np.random.default_rng(0)
  for case, options in {
    "bv_map": {"probe": True},
    "bv_cls": {"cls": True, "head": 5},
    "bv_gap_scanned": {"head": 5, "table": False},
  }.items():
    flat = flax_weights(rng, **options)
    y = np.stack([big_vision(nested(flat), x) for x in image.astype("f8")])
    if case.endswith("scanned"):
      one, two = "Transformer/encoderblock_0/", "Transformer/encoderblock_1/"
      for name in [n for n in flat if n.startswith(one)]:
        pair = [flat.pop(name), flat.pop(name.replace(one, two))]
        flat[name.replace("block_0", "block")] = np.stack(pair)
    yield case, {f"params/{k}": v for k, v in flat.items()}, {}, y


def main() -> None:
  torch.manual_seed(0)
  image = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("f4")
  theirs = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
  arrays = {"image": image}
  with torch.no_grad():
    cases = [*hugging_face(theirs), *of_timm(theirs), *of_big_vision(image)]
  for case, state, config, y in cases:
    state = {name: np.asarray(p) for name, p in state.items()}
    whole = np.concatenate([p.reshape(-1) for p in state.values()])
    assert (whole == whole.astype("f2")).all(), case
    shapes = {name: p.shape for name, p in state.items()}
    facts = {"shapes": shapes, "config": config}
    arrays[f"{case}/state"] = whole.astype("f2")
    arrays[f"{case}/facts"] = np.array(json.dumps(facts, default=str))
    arrays[f"{case}/out"] = np.asarray(y, np.float32)
  path = pathlib.Path(__file__).with_name("interop.npz")
  np.savez_compressed(path, **arrays)
  print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
  main()
