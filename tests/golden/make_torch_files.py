"""Makes torch_{zip,stream,wrapped}.pth: tiny state dicts, both layouts.

    pip install torch && python tests/golden/make_torch_files.py

Run by hand; the tests read the files and need no torch.
"""

import pathlib

import torch


def main() -> None:
  base = torch.arange(24, dtype=torch.float32)
  state = {
    "plain": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "turned": base.reshape(4, 6).T,  # a view with other strides
    "part": base[5:9],  # of the same storage
    "parameter": torch.nn.Parameter(torch.tensor([0.5, -0.5])),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "count": torch.tensor(7),
    "mask": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3, dtype=torch.float64),
  }
  here = pathlib.Path(__file__).parent
  # MAE's and DeiT's released files have the state dict under one name.
  for name, zipped, saved in (
    ("torch_zip", True, state),
    ("torch_stream", False, state),
    ("torch_wrapped", True, {"model": {"part": base[5:9]}}),
  ):
    path = here / f"{name}.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
  main()
