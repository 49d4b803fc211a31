"""Contestant `vitscale`: a ViTok at work, a DiT that samples."""

import jax
import jax.numpy as jnp
import numpy as np

from vitscale.core import axes
from vitscale.models import dit, vitok
from vitscale.race.contest import Generation, serve
from vitscale.sampling import samplers
from vitscale.sampling.process import Process

CLASSES, GUIDANCE = 1000, 4.0


def build(name: str, case: Generation):
  del name
  key = jax.random.key(0)
  if case.what == "sample":
    model = dit.Model(
      CLASSES, 4, case.width, case.depth, 4 * case.width, case.heads,
      dtype=case.dtype,
    )  # fmt: skip
    shape = (case.batch, case.size, case.size, 4)
    x = jax.random.normal(key, shape)
    label = np.arange(case.batch) % CLASSES
    run = lambda variables: samplers.generate(
      model, variables, x, label, process=Process("ddpm"), sampler="ddim",
      steps=case.denoise, guidance=GUIDANCE,
    )  # fmt: skip
  else:
    kwargs = {**vitok.variant(case.tokenizer), "dtype": case.dtype}
    model = vitok.Model(**kwargs)
    shape = (case.batch, case.size, case.size, 3)
    x = jax.random.uniform(key, shape, minval=-1.0)
    z = jnp.zeros((case.batch, (case.size // 16) ** 2, 16))
    encode = lambda v: model.apply(v, x, method=model.encode)[0]
    decode = lambda v: model.apply(v, z, shape[1:], method=model.decode)[0]
    run = jax.jit(encode if case.what == "encode" else decode)
  variables = axes.unbox(jax.jit(model.init)(key, x[:1]))
  result = None

  def step():
    nonlocal result
    result = run(variables)

  def about():
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    facts = {
      "params": count,
      "version": f"jax {jax.__version__}",
      "device": jax.devices()[0].device_kind,
    }
    if case.device == "gpu":
      stats = jax.devices()[0].memory_stats()
      facts["memory"] = stats["peak_bytes_in_use"]
    return facts

  return step, lambda: jax.block_until_ready(result), about


if __name__ == "__main__":
  serve(build, Generation)
