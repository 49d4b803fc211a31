"""Contestant `diffusers`: AutoencoderKL at work, and its DiT pipeline.

Random weights: the shapes of Stable Diffusion's autoencoder (8 x 8 pixels to 4
floats, so that E is ViTok S-B/16's), and a DiT of the case's. The pipeline
decodes what it samples, here with an autoencoder of next to nothing.
"""

import torch
from diffusers import (
  AutoencoderKL,
  DDIMScheduler,
  DiTPipeline,
  DiTTransformer2DModel,
)
from diffusers import __version__ as version

from vitscale.race.contest import Generation, serve
from vitscale.race.generation import CLASSES, GUIDANCE

BLOCKS = (128, 256, 512, 512)


def build(name: str, case: Generation):
  del name
  cuda = case.device == "gpu"
  device = torch.device("cuda" if cuda else "cpu")
  dtype = getattr(torch, case.dtype)
  torch.manual_seed(0)
  if cuda:
    torch.set_float32_matmul_precision("high")
  else:
    torch.set_num_threads(case.threads)
  if case.what == "sample":
    model, run = pipeline(case, device, dtype)
  else:
    model, run = autoencoder(case, device, dtype)

  def about():
    facts = {
      "params": sum(p.numel() for p in model.parameters()),
      "version": f"diffusers {version}, torch {torch.__version__}",
    }
    if cuda:
      facts["memory"] = torch.cuda.max_memory_allocated()
    return facts

  return run, torch.cuda.synchronize if cuda else lambda: None, about


def autoencoder(case: Generation, device, dtype):
  model = AutoencoderKL(
    block_out_channels=BLOCKS,
    down_block_types=("DownEncoderBlock2D",) * len(BLOCKS),
    up_block_types=("UpDecoderBlock2D",) * len(BLOCKS),
    layers_per_block=2,
  )
  model = model.to(device, dtype).eval().requires_grad_(False)
  if device.type == "cuda":
    model = model.to(memory_format=torch.channels_last)
  side = case.size // 8
  x = torch.rand(case.batch, 3, case.size, case.size) * 2 - 1
  z = torch.randn(case.batch, 4, side, side)
  x, z = x.to(device, dtype), z.to(device, dtype)
  work = {
    "encode": lambda: model.encode(x).latent_dist.mode(),
    "decode": lambda: model.decode(z).sample,
  }[case.what]
  if device.type == "cuda":
    work = torch.compile(work)

  @torch.inference_mode()
  def run():
    work()

  return model, run


def pipeline(case: Generation, device, dtype):
  model = DiTTransformer2DModel(
    num_attention_heads=case.heads,
    attention_head_dim=case.width // case.heads,
    in_channels=4,
    out_channels=4,
    num_layers=case.depth,
    sample_size=case.size,
    patch_size=2,
    num_embeds_ada_norm=CLASSES,
  )
  tiny = AutoencoderKL(
    block_out_channels=(8,), norm_num_groups=4, layers_per_block=1
  )
  pipe = DiTPipeline(model, tiny, DDIMScheduler()).to(device, dtype)
  pipe.set_progress_bar_config(disable=True)
  if device.type == "cuda":
    pipe.transformer = torch.compile(pipe.transformer)
  labels = [i % CLASSES for i in range(case.batch)]

  def run():
    pipe(
      labels, guidance_scale=GUIDANCE, num_inference_steps=case.denoise,
      output_type="np",
    )  # fmt: skip

  return model, run


if __name__ == "__main__":
  serve(build, Generation)
