"""Nested gradients on 8 fake devices; prints one JSON object.

case -> gap to one device, bytes of the collectives of the nested step and of
the small model alone on the same mesh, bytes of the parameters that are cut.
"""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from tests.contract.families import gap
from tests.tasks.test_nested import config as nested_config
from vitscale.bench import build
from vitscale.core import axes, draws, hlo, sharding, tree
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.slice import nest
from vitscale.models import vit

CASES = {
  "ffn fsdp": ("ffn=1/2", {"fsdp": 8}),
  "embed fsdp": ("embed=1/2 heads=1/2 ffn=1/2", {"fsdp": 8}),
  "ffn tensor": ("ffn=1/2", {"fsdp": 2, "tensor": 4}),
}
BIG = vit.Model(
  num_classes=8, width=256, depth=2, mlp_dim=1024, num_heads=8, patch_size=4,
  attention="reference",
)  # fmt: skip
IMAGE = np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype("f4")


def boxed(m):
  return jax.eval_shape(m.init, jax.random.key(0), IMAGE[:1])


def moved(text):
  found = hlo.collectives(text, devices=8)
  return {kind: total.bytes for kind, total in found.items() if total.bytes}


def check(text, sizes):
  little, layers = spec_lib.small(BIG, spec_lib.parse(text))
  names, want = axes.names_of(boxed(BIG)), axes.unbox(boxed(little))
  rng = np.random.default_rng(1)
  whole = jax.tree.map(
    lambda x: (0.05 * rng.normal(size=x.shape)).astype("f4"),
    axes.unbox(boxed(BIG)),
  )
  loss = lambda v, x: jnp.square(little.apply(v, x)[0] - 1).mean()
  nested = lambda v, x: loss(nest(v, names, want, layers), x)
  alone = jax.device_get(jax.jit(jax.value_and_grad(nested))(whole, IMAGE))
  mesh = sharding.make_mesh(sizes)
  with sharding.use(mesh):
    place = lambda n, v: sharding.param_shardings(n, v, mesh)
    image = sharding.shard_batch({"image": IMAGE}, mesh)["image"]

    def compiled(fn, named, variables):
      placed = place(named, variables)
      run = jax.jit(jax.value_and_grad(fn), out_shardings=(None, placed))
      variables = jax.device_put(variables, placed)
      run = run.lower(variables, image).compile()
      return run, run(variables, image)

    run, got = compiled(nested, names, whole)
    cut = nest(whole, names, want, layers)
    plain, _ = compiled(loss, axes.names_of(boxed(little)), cut)
  pairs = zip(tree.flatten(whole).values(), tree.flatten(cut).values())
  return {
    "gap": gap(jax.device_get(got), alone),
    "nested": moved(run.as_text()),
    "alone": moved(plain.as_text()),
    "cut_bytes": sum(x.nbytes for x, y in pairs if x.shape != y.shape),
  }


def trained(mesh):
  """Parameters after two joint steps over widths, heads and FFN."""
  config = nested_config(
    "joint", "hydravit:4", evals={}, model__depth=1, model__width=256,
    model__mlp_dim=512, optim__eps=1e-3,
  )  # fmt: skip
  config.model.num_heads = 4
  config.mesh = mesh
  devices = jax.devices()[: math.prod(mesh.values())]
  bench = build(config, devices=devices)
  state, batches = bench.init(np.uint32(0)), bench.batches(0, 0)
  for step in range(2):
    draw = tuple(sorted(draws.at(bench.draws, 0, step).items()))
    batch = sharding.shard_batch(next(batches), bench.mesh, bench.rules)
    lrs = {"model": np.float32(1e-3)}
    state = bench.step(state, batch, np.uint32(0), lrs, draw=draw)
  batches.close()
  return jax.device_get(state["params"])


if __name__ == "__main__":
  assert jax.device_count() == 8, jax.devices()
  results = {name: check(*case) for name, case in CASES.items()}
  results["training"] = {"gap": gap(trained({"fsdp": 8}), trained({"fsdp": 1}))}
  print(json.dumps(results))
