"""Options of XLA that a training step is compiled with."""

import functools

import jax

# XLA's CPU back end hands products and sums to a library (YNNPACK) that is
# slower than its own kernels at a ViT's shapes, and by default fills only half
# of an AVX-512 register: experiments/speed.
CPU = {
  "xla_cpu_experimental_ynn_fusion_type": "",
  "xla_cpu_prefer_vector_width": 512,
}


@functools.cache
def options(platform: str) -> dict[str, str | int]:
  """For `jax.jit(compiler_options=)` on "cpu" | "gpu" | "tpu".

  A version of jaxlib that doesn't know an option goes without it.
  """
  if platform != "cpu":
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=CPU).lower().compile()
  except jax.errors.JaxRuntimeError:
    return {}
  return CPU
