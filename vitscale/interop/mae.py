"""Encoders of masked autoencoders (2111.06377): the decoder stays behind.

Hugging Face's `ViTMAE*` are its ViT with a decoder, the released files are
timm's names with one; positions are stored sines, read as a learned table.
"""

import dataclasses

from vitscale.interop import hf_vit, timm
from vitscale.interop.mapping import IMAGENET

LAYOUT = dataclasses.replace(
  hf_vit.LAYOUT,
  name="mae",
  what="Hugging Face MAE",
  marks=(*hf_vit.LAYOUT.marks, r"decoder\.(decoder_embed|mask_token).*"),
  preprocess=IMAGENET,
)
RELEASED = dataclasses.replace(
  timm.LAYOUT,
  name="mae_released",
  what="MAE as released",
  marks=(*timm.LAYOUT.marks, r"decoder_embed\.weight"),
  left=r"decoder_.*|mask_token",
  preprocess=IMAGENET,
)
