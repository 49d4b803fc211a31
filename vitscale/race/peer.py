"""Contestant `timm`: the same ViT by timm, eager on CPU, compiled on GPU."""

import functools

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from vitscale.race import contest


def build(name: str, case: contest.Case):
  del name
  cuda = case.device == "gpu"
  device = torch.device("cuda" if cuda else "cpu")
  torch.manual_seed(0)
  if cuda:
    torch.set_float32_matmul_precision("high")
  else:
    torch.set_num_threads(case.threads)
  model = VisionTransformer(
    img_size=case.size,
    patch_size=case.patch,
    in_chans=case.channels,
    num_classes=case.classes,
    embed_dim=case.width,
    depth=case.depth,
    num_heads=case.heads,
    class_token=False,
    global_pool="avg",
    fc_norm=False,
    norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
  ).to(device)
  model.set_grad_checkpointing(case.recompute)
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.05,
    fused=True,
  )  # fmt: skip
  shape = (case.batch, case.channels, case.size, case.size)
  image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
  label = torch.randint(0, case.classes, (case.batch,), device=device)

  def loss_of(image, label):
    image = (image.float() - 127.5) / 73.6
    with torch.autocast(
      device.type, torch.bfloat16, enabled=case.dtype == "bfloat16"
    ):
      logits = model(image)
    return F.cross_entropy(logits.float(), label)

  if cuda and not case.recompute:
    loss_of = torch.compile(loss_of)

  def step():
    optimizer.zero_grad(set_to_none=True)
    loss_of(image, label).backward()
    optimizer.step()

  def about():
    facts = {
      "params": sum(p.numel() for p in model.parameters()),
      "version": f"timm {timm.__version__}, torch {torch.__version__}",
    }
    if cuda:
      facts["memory"] = torch.cuda.max_memory_allocated()
    return facts

  return step, torch.cuda.synchronize if cuda else lambda: None, about


if __name__ == "__main__":
  contest.serve(build)
