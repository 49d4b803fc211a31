"""Makes networks.npz: what published networks say with random weights.

    pip install torch torch-fidelity lpips timm
    python tests/golden/make_networks.py

Run by hand when a case is added; the tests need neither torch nor the file of
weights, which states.py makes anew. Keys:

  inception            (1, 2048) of torch-fidelity's network
  resized              every 13th pixel of what it sees first
  Mixed_5b, Mixed_7c   of two of its blocks
  efficientnet_lite0   (1, 1280) of timm's tf_efficientnet_lite0, on noise
  lpips_alex, _vgg     (2,) of the authors' package
  image, other         uint8, what LPIPS compares
"""

import pathlib

import lpips
import numpy as np
import states
import timm
import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity


def filled(model: torch.nn.Module, names=None) -> torch.nn.Module:
  """A model with the weights of states.py; `names` are those of its state."""
  state = model.state_dict()
  # LPIPS lists its weights twice, as lin0 and as lins.0.
  names = names or [name.replace("lins.", "lin") for name in state]
  named = dict(zip(state, names, strict=True))
  model.load_state_dict(
    {
      key: torch.from_numpy(states.value(named[key], tuple(old.shape)))
      for key, old in state.items()
      if not key.startswith("scaling_layer")
    },
    strict=False,
  )
  return model.eval()


def lite_names() -> list[str]:
  """The names of the released file, in the order of timm's."""
  norm = ("weight", "bias", "running_mean", "running_var")
  norm += ("num_batches_tracked",)
  names = ["_conv_stem.weight", *(f"_bn0.{part}" for part in norm)]
  for i in range(16):
    parts = [("_expand_conv", "_bn0")] if i else []
    parts += [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
    for conv, bn in parts:
      names += [f"_blocks.{i}.{conv}.weight"]
      names += [f"_blocks.{i}.{bn}.{part}" for part in norm]
  names += ["_conv_head.weight", *(f"_bn1.{part}" for part in norm)]
  return [*names, "_fc.weight", "_fc.bias"]


@torch.no_grad()
def main() -> None:
  first = lambda x: torch.from_numpy(x).permute(0, 3, 1, 2)
  last = lambda x: x.permute(0, 2, 3, 1).numpy()
  arrays = {}

  class Network(fidelity.FeatureExtractorInceptionV3):
    """Its weights are filled after it is made, not downloaded."""

    def load_state_dict(self, state, *args, **kwargs):
      return super().load_state_dict(state, *args, **kwargs) if state else None

  fidelity.load_state_dict_from_url = lambda *args, **kwargs: {}
  model = filled(Network("inception", ["2048"]))
  image = first(states.images(1, 40, 52))
  arrays["inception"] = model(image)[0].numpy()
  resized = fidelity.interpolate_bilinear_2d_like_tensorflow1x(
    image.float(), size=(299, 299), align_corners=False
  )
  arrays["resized"] = last(resized)[:, ::13, ::13]
  for name, c in (("Mixed_5b", 192), ("Mixed_7c", 2048)):
    x = first(states.activations(1, 5, 5, c))
    arrays[name] = last(getattr(model, name)(x))

  model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
  model = filled(model, lite_names())
  noise = states.activations(1, 224, 224, 3)
  seen = model.forward_features(first(noise)).mean((2, 3))
  arrays["efficientnet_lite0"] = seen.numpy()

  pair = states.images(4, 40, 52)
  arrays["image"], arrays["other"] = pair[:2], pair[2:]
  arrays["other"][1] = arrays["other"][1][::-1]
  for net in ("alex", "vgg"):
    model = filled(lpips.LPIPS(pretrained=False, net=net, pnet_rand=True))
    both = (first(arrays[k]) / 255 for k in ("image", "other"))
    arrays[f"lpips_{net}"] = model(*both, normalize=True).flatten().numpy()
  path = pathlib.Path(__file__).with_name("networks.npz")
  np.savez_compressed(path, **arrays)
  print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
  for name, x in arrays.items():
    print(name, x.shape, x.dtype, x.ravel()[:3])


if __name__ == "__main__":
  main()
