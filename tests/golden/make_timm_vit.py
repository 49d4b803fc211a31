"""Makes timm_vit.npz: toy timm ViTs, random weights, inputs and outputs.

    pip install torch timm && python tests/golden/make_timm_vit.py

Run by hand when a case is added; the tests read the arrays and need no torch.
Keys: `<case>/state/<name>`, `<case>/logits`, `<case>/features` (tokens after
the last norm), and `image` (2, 3, 24, 24).
"""

import pathlib

import numpy as np
import timm
import torch

TOY = {
  "img_size": 24,
  "patch_size": 8,
  "embed_dim": 24,
  "mlp_ratio": 2,
  "depth": 2,
  "num_heads": 2,
  "num_classes": 5,
}
CASES = {
  "cls": {},
  "cls_registers": {
    "reg_tokens": 2,
    "qk_norm": True,
    "init_values": 0.1,
    "no_embed_class": True,
  },
  "mean": {"global_pool": "avg"},
  "mean_plain": {
    "global_pool": "avg",
    "class_token": False,
    "fc_norm": False,
    "reg_tokens": 1,
    "qkv_bias": True,
  },
  "map": {"global_pool": "map", "class_token": False},
}


def main() -> None:
  torch.manual_seed(0)
  image = torch.randn(2, 3, 24, 24)
  arrays = {"image": image.numpy()}
  for case, kwargs in CASES.items():
    model = timm.models.vision_transformer.VisionTransformer(**TOY, **kwargs)
    model.eval()
    with torch.no_grad():
      # Large enough that no term hides below the tolerance.
      for name, p in model.named_parameters():
        gain = 1.0 if name.endswith(("norm.weight", "gamma")) else 0.0
        # Half precision values in float32 arrays: they compress.
        p.copy_((gain + 0.3 * torch.randn_like(p)).half())
      features = model.forward_features(image)
      logits = model.forward_head(features)
    for name, p in model.state_dict().items():
      arrays[f"{case}/state/{name}"] = p.numpy()
    arrays[f"{case}/features"] = features.numpy()
    arrays[f"{case}/logits"] = logits.numpy()
  path = pathlib.Path(__file__).with_name("timm_vit.npz")
  np.savez_compressed(path, **arrays)
  print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
  main()
