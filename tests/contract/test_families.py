"""What every family of `vitscale.models` has to hold.

Families are found, not listed: a new module is tested without a line here.
The docstrings are the legend of ZOO.md.
"""

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.contract.families import SLICED, Family, gap, same_grid
from vitscale import zoo
from vitscale.core import axes, tree
from vitscale.core.accounting import count_flops, train_flops
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.errors import UserError
from vitscale.nn import block, layers

ROOT = Path(__file__).parents[2]

make = functools.cache(Family)  # so that compiled programs are shared
pytestmark = pytest.mark.parametrize("family", zoo.names())


@pytest.fixture
def fam(family):
  return make(family)


def need(fam, *fields):
  if not fam.has(*fields):
    pytest.skip(f"no option {' or '.join(fields)}")


# ------------------------------------------------------------------ interface


def test_exports(fam):
  """Model, VARIANTS with a toy, variant, PAPER, FIDELITY, PRESENTED; imports
  no other family; file of at most 400 lines."""
  module = fam.module
  assert issubclass(module.Model, nn.Module)
  assert "mu" in module.VARIANTS
  assert next(iter(module.PRESENTED)).startswith("mu")
  assert module.FIDELITY in zoo.FIDELITIES and module.PAPER
  for shown in zoo.presented(module):
    shown.model()
  with pytest.raises(UserError, match="'nonsense'"):
    module.variant("nonsense")
  source = inspect.getsource(module)
  others = "|".join(n for n in zoo.names() if n != fam.name) or "$."
  assert not re.search(rf"vitscale\.models(\.| import )({others})\b", source)
  assert source.count("\n") <= 400


def test_sizes(fam, record_property):
  """Square, odd and non-square images: initialised and applied, finite, the
  features cover the image; or refused in one line."""
  h, w, _ = fam.toy.image
  s = fam.stride()
  run = jax.jit(functools.partial(fam.call, fam.base))
  saw, worked = [], 0
  for size in ((h, w), (h - s[0], w + s[1]), (h + 1, w - 1)):
    text = f"{size[0]}x{size[1]}"
    try:
      fam.shapes(size=size)
      y, out = run(fam.variables(), fam.image(size))
    except UserError as error:
      assert 20 < len(str(error)) < 300 and "\n" not in str(error)
      saw.append(f"{text} refused")
      continue
    worked += 1
    saw.append(f"{text} fine")
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(y))
    assert out["features"], "no features"
    assert all(same_grid(f, size) for f in out["features"])
  record_property("saw", ", ".join(saw))
  assert worked >= 2, saw


def test_axes(fam):
  """Every variable names its axes, at init and in every option of layers."""
  options = [{}, {"scan": True}] if fam.has("scan") else [{}]
  for changes in options:
    boxed = fam.boxed(fam.toy.model(**changes))
    named = tree.flatten(axes.names_of(boxed))
    for path, leaf in tree.flatten(axes.unbox(boxed)).items():
      assert len(named[path].names) == len(leaf.shape), path
    if changes:
      assert any("layers" in a.names for a in named.values())


# ------------------------------------------------------------------ numerics


def test_gradients(fam, record_property):
  """A finite gradient, somewhere not zero, for every parameter."""
  loss, _, grads = fam.outcome()
  assert np.isfinite(loss)
  flat = tree.flatten(grads)
  assert flat
  for path, g in flat.items():
    assert np.isfinite(g).all(), path
    assert np.any(g), f"no gradient for {path}"
  record_property("saw", f"{len(flat)} parameters")


def test_scan(fam):
  """Scanned layers give the loss and gradients of looped ones to 1e-5."""
  need(fam, "scan")
  stacked = layers.stack_layers(fam.variables())
  shapes = fam.shapes(fam.toy.model(scan=True))
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  loss, y, grads = fam.outcome(stacked, scan=True)
  want_loss, want_y, want_grads = fam.outcome()
  assert gap((loss, y), (want_loss, want_y)) < 1e-5
  assert gap(layers.unstack_layers(grads), want_grads) < 1e-5


def test_remat(fam, record_property):
  """Every remat policy gives the loss and gradients of none to 1e-5."""
  need(fam, "remat")
  policies = [name for name in block.REMAT if name]
  for policy in policies:
    loss, y, grads = fam.outcome(remat=policy)
    want_loss, want_y, want_grads = fam.outcome()
    assert gap((loss, y), (want_loss, want_y)) < 1e-5, policy
    assert gap(grads, want_grads) < 1e-5, policy
  record_property("saw", ", ".join(policies))


def test_bfloat16(fam):
  """Computing in bfloat16: finite, outputs within 5 %, gradients float32 and
  in the same direction (cosine 0.99)."""
  need(fam, "dtype")
  loss, y, grads = fam.outcome(dtype="bfloat16")
  _, want_y, want_grads = fam.outcome()
  assert np.isfinite(loss) and gap(y, want_y) < 0.05
  assert gap(y, want_y) > 0, "bfloat16 changed nothing"
  assert all(g.dtype == np.float32 for g in jax.tree.leaves(grads))
  whole = lambda t: np.concatenate([g.ravel() for g in jax.tree.leaves(t)])
  a, b = whole(grads), whole(want_grads)
  assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.99


def test_patch_size(fam, record_property):
  """Another patch at run time; the canonical one changes nothing at all."""
  if "patch_size" not in inspect.signature(fam.base.__call__).parameters:
    pytest.skip("the call takes no patch_size")
  run = jax.jit(
    functools.partial(fam.call, fam.base), static_argnames="patch_size"
  )
  canonical, (h, w, _) = fam.base.patch_size, fam.toy.image
  plain, _ = run(fam.variables(), fam.image())
  same, _ = run(fam.variables(), fam.image(), patch_size=canonical)
  jax.tree.map(np.testing.assert_array_equal, same, plain)
  known = max(np.broadcast_to(canonical, 2))
  other = next(p for p in range(known + 1, h + 1) if h % p == w % p == 0)
  y, out = run(fam.variables(), fam.image(), patch_size=other)
  assert all(np.isfinite(part).all() for part in jax.tree.leaves(y))
  assert same_grid(out["features"][0], (h, w))
  assert out["features"][0][0].shape[1] == h // other
  record_property("saw", f"{canonical} and {other}")


# ------------------------------------------------------------------ 8 devices


@functools.cache
def on_eight_devices():
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  run = subprocess.run(
    [sys.executable, Path(__file__).with_name("devices.py")],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "8",
      "PYTHONPATH": os.pathsep.join(paths),
    },
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])


def test_mesh(fam):
  """8 devices (fsdp 8; replica 4 x tensor 2; replica 2 x fsdp 2 x tensor 2)
  equal 1 in float32 to 1e-5, loss and gradients."""
  saw = on_eight_devices()[fam.name]["mesh"]
  assert "gap" in saw, saw.get("error") or saw
  assert saw["gap"] < 1e-5
  assert saw["constraints"] and saw["split"], saw


def test_sequence(fam):
  """The same with tokens of an image split: fsdp 2 x sequence 4, and fsdp 2 x
  tensor 2 x sequence 2."""
  saw = on_eight_devices()[fam.name]["sequence"]
  if "refused" in saw:
    pytest.skip(saw["refused"])
  assert "gap" in saw, saw["error"]
  assert saw["gap"] < 1e-5
  assert saw["constraints"], saw


# -------------------------------------------------------------------- FLOPs


def test_macs(fam, record_property):
  """The count on the jaxpr equals `flops_per_image` exactly: every third
  presented variant, a non-square image, fewer classes."""
  by_hand = getattr(fam.module, "flops_per_image", None)
  if by_hand is None:
    pytest.skip("no hand formula")
  layers = {"scan": True} if fam.has("scan") else {}
  h, w, c = fam.toy.image
  s = fam.stride()
  cases = [(v, v.image, {}) for v in zoo.presented(fam.module)[::3]]
  cases += [(fam.toy, (h - s[0], w + s[1], c), {})]
  if fam.has("num_classes"):
    cases += [(fam.toy, fam.toy.image, {"num_classes": 3})]
  for shown, image, changes in cases:
    model = shown.model(**layers, **changes)
    counted = zoo.count_macs(fam.module, model, image)
    assert counted == by_hand(shown.kwargs(**changes), image), shown.variant
  record_property("saw", f"{len(cases)} configurations")
  assert len(cases) >= 3


def test_train_flops(fam, record_property):
  """One number of model FLOPs of a step: loop or scan, any remat, any back
  end of attention (chunked: forward, its backward pass recomputes)."""
  image = jax.ShapeDtypeStruct(fam.image().shape, jnp.float32)

  def count(what, **changes):
    model = fam.toy.model(**changes)
    loss = fam.loss(model)
    shapes = fam.shapes(model)
    rest = {k: v for k, v in shapes.items() if k != "params"}
    return what(loss, shapes["params"], rest, image).matmul

  reference = {"attention": "reference"} if fam.has("attention") else {}
  step, forward = count(train_flops, **reference), count(count_flops)
  assert 2 * forward < step <= 3 * forward
  same = {
    "scan": [True],
    "remat": [name for name in block.REMAT if name],
    "attention": ["xla"],
  }
  saw = []
  for field, values in same.items():
    for value in values if fam.has(field) else ():
      assert count(train_flops, **{field: value}) == step, (field, value)
      saw.append(f"{field} {value}")
  if fam.has("attention"):
    assert count(count_flops, attention="chunked") == forward
  record_property("saw", ", ".join(saw))


# ------------------------------------------------------- slicing and storing


def test_slicing(fam, record_property):
  """Half of the hidden units and heads: sliced by axis names equals cut by
  shape and masked in the big model, to 1e-6."""
  big_options, small_options = fam.sizes()
  if not small_options:
    pytest.skip("no option mlp_dim, nor num_heads with head_dim and width")
  big, small = (fam.toy.model(**o) for o in (big_options, small_options))
  names = axes.names_of(fam.boxed(big))
  variables, shapes = fam.variables(), fam.shapes(small)
  assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
    jnp.shape, fam.shapes(big)
  )
  sliced = tree.shrink(variables, names, shapes)
  corner = lambda x, to: x[tuple(slice(n) for n in to.shape)]
  cut = jax.tree.map(corner, variables, shapes)
  jax.tree.map(np.testing.assert_array_equal, sliced, cut)
  # Nothing but these axes got smaller.
  shrunk = {
    axes.role(name)
    for path, leaf in tree.flatten(shapes).items()
    for name, n, m in zip(
      tree.flatten(names)[path].names,
      tree.flatten(variables)[path].shape,
      leaf.shape,
    )
    if n != m
  }
  assert shrunk and shrunk <= set(SLICED), shrunk
  want, _ = jax.jit(functools.partial(fam.call, small))(sliced, fam.image())
  masked = {
    **variables,
    "params": fam.masked(
      variables["params"], names["params"], shapes["params"]
    ),
  }
  run = jax.jit(functools.partial(fam.call, big))
  y, _ = run(masked, fam.image())
  assert gap(y, want) < 1e-6
  whole, _ = run(variables, fam.image())
  assert gap(whole, want) > 1e-3, "slicing changed nothing"
  record_property("saw", ", ".join(sorted(shrunk)))


def test_checkpoint(fam, tmp_path):
  """A checkpoint brings back every variable bit for bit."""
  store = CheckpointStore(tmp_path)
  store.save(3, fam.variables(), {"family": fam.name})
  store.close()
  state, meta = CheckpointStore(tmp_path).restore(fam.shapes())
  assert meta["family"] == fam.name and meta["step"] == 3
  got, want = tree.flatten(state), tree.flatten(fam.variables())
  assert list(got) == list(want)
  for path, x in want.items():
    assert got[path].dtype == x.dtype, path
    np.testing.assert_array_equal(got[path], x, err_msg=path)
