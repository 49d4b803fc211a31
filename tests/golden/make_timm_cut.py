"""Makes timm_cut.npz: what timm computes with exported cut models.

    python -m tests.interop.test_export DIR      (writes one folder per case)
    pip install torch timm safetensors
    python tests/golden/make_timm_cut.py DIR

Run by hand when a case is added; the tests read the arrays and need no torch.
Keys: `<case>`, logits of the image in DIR.
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.torch
import timm
import torch


def logits(folder: pathlib.Path, image: torch.Tensor) -> np.ndarray:
  """Of timm's model with every weight of an export, none missing."""
  kwargs = json.loads((folder / "timm.json").read_text())
  model = timm.models.vision_transformer.VisionTransformer(
    **{**kwargs, "img_size": tuple(kwargs["img_size"]),
       "patch_size": tuple(kwargs["patch_size"])}
  )  # fmt: skip
  state = safetensors.torch.load_file(folder / "timm.safetensors")
  model.load_state_dict(state, strict=True)
  with torch.no_grad():
    return model.eval()(image).numpy()


def main(folder: str) -> None:
  root = pathlib.Path(folder)
  image = torch.from_numpy(np.load(root / "image.npy").transpose(0, 3, 1, 2))
  cases = sorted(p.parent for p in root.glob("*/timm.json"))
  arrays = {case.name: logits(case, image) for case in cases}
  path = pathlib.Path(__file__).with_name("timm_cut.npz")
  np.savez_compressed(path, **arrays)
  print(f"{path.name}: {', '.join(arrays)}")


if __name__ == "__main__":
  main(sys.argv[1])
