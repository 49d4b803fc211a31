"""Scale after scale: the cache against teacher forcing, guidance, draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.nn.bottlenecks import util
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.models import var
from vitscale.nn import layers
from vitscale.nn.bottlenecks import residual_vq
from vitscale.sampling import scales

SIDES = (1, 2, 3)
N = 14
OPTIONS = {
  **var.variant("mu"), "channels": 4, "vocabulary": 12, "num_classes": 3,
  "scales": SIDES,
}  # fmt: skip
LABEL = np.array([0, 2, 1])


@functools.cache
def neck():
  """(residual_vq, its parameters)."""
  made, variables = util.initial(f"residual_vq(12, 4, {SIDES})", 8, 9)
  return made, variables["params"]


@functools.cache
def toy(**options):
  """(model, variables off zero), draws far from uniform."""
  model = var.Model(**{**OPTIONS, **options})
  shown = jnp.zeros((1, N - 1, 4))
  variables = axes.unbox(jax.jit(model.init)(jax.random.key(0), shown))
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.15 * rng.normal(size=x.shape).astype(np.float32)
  return model, jax.tree.map(move, variables)


@functools.cache
def forced(model):
  """Logits of all scales, and what is shown, of codes: jitted."""
  made, own = neck()

  def run(variables, codes, label):
    shown = made.apply({"params": own}, codes, method="inputs")
    return model.apply(variables, shown, label)[0], shown

  return jax.jit(run)


def generate(model, variables, seed=0, label=LABEL, n=3, **options):
  key = jax.random.key(seed)
  return scales.generate(model, variables, *neck(), key, n, label, **options)


def test_the_cache_gives_the_logits_of_teacher_forcing():
  model, variables = toy()
  codes = jax.random.randint(jax.random.key(1), (3, N), 0, 12)
  want, shown = forced(model)(variables, codes, LABEL)

  @jax.jit
  def run(variables, shown):
    condition = model.apply(variables, LABEL, 3, method="condition")
    cache, said = (None,) * model.depth, []
    for k, part in enumerate([None, *jnp.split(shown, [4], 1)]):
      logits, cache = scales.advance(
        model, variables, k, part, condition, cache
      )
      said.append(logits)
    return jnp.concatenate(said, 1), cache

  said, cache = run(variables, shown)
  np.testing.assert_allclose(said, want, atol=2e-5)
  assert np.abs(np.diff(want, axis=1)).max() > 0.1
  assert len(cache) == 2
  assert {x.shape for pair in cache for x in pair} == {(3, N, 2, 16)}


def test_stacked_layers_are_the_same_program():
  model, variables = toy()
  stacked = layers.stack_layers(variables)
  same = generate(model.clone(scan=True), stacked)
  np.testing.assert_array_equal(generate(model, variables), same)


def test_the_likeliest_codes_are_those_of_teacher_forcing():
  """At temperature 0 every code is the likeliest, given those before."""
  model, variables = toy()
  codes = generate(model, variables, temperature=0)
  assert codes.shape == (3, N) and codes.dtype == jnp.int32
  logits, _ = forced(model)(variables, codes, LABEL)
  np.testing.assert_array_equal(logits.argmax(-1), codes)
  assert len(np.unique(codes)) > 3
  assert np.any(codes[0] != codes[1])


@pytest.mark.parametrize("w", [1.0, 4.0])
def test_guidance_rises_from_the_first_scale_to_the_last(w):
  model, variables = toy()
  codes = generate(model, variables, temperature=0, guidance=w)
  of_class, _ = forced(model)(variables, codes, LABEL)
  of_none, _ = forced(model)(variables, codes, np.full(3, 3))
  ramp = np.repeat([1, (1 + w) / 2, w], [1, 4, 9])[:, None]
  want = of_none + ramp * (of_class - of_none)
  np.testing.assert_array_equal(want.argmax(-1), codes)
  plain = generate(model, variables, temperature=0)
  assert np.array_equal(plain, codes) == (w == 1)
  np.testing.assert_array_equal(plain[:, 0], codes[:, 0])


def test_draws_have_the_model_s_distribution():
  """The first scale's code over many samples of one class, of the likeliest."""
  model, variables = toy()
  n, label = 4000, np.zeros(4000, int)
  logits, _ = forced(model)(variables, np.zeros((3, N), int), label[:3])
  share = np.array(jax.nn.softmax(logits[0, 0]))
  share[share.argsort()[:-5]] = 0
  share /= share.sum()
  codes = generate(model, variables, label=label, n=n, top_k=5)
  seen = np.bincount(codes[:, 0], minlength=12) / n
  assert not seen[share == 0].any()
  assert np.abs(seen - share).max() < 4 * (0.25 / n) ** 0.5
  assert (share > 0.05).sum() > 2


def test_a_key_decides():
  model, variables = toy()
  a, b, c = (generate(model, variables, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert np.any(a != c)


def test_no_class():
  model, variables = toy()
  none = generate(model, variables, label=None)
  said = generate(model, variables, label=np.full(3, 3))
  np.testing.assert_array_equal(none, said)
  plain, own = toy(num_classes=0)
  assert generate(plain, own, label=None).shape == (3, N)


@pytest.mark.parametrize(
  "classes, options, text",
  [
    (0, {"guidance": 2.0, "label": None}, "has no classes to be guided to"),
    (3, {"guidance": 2.0, "label": None}, "needs labels"),
    (3, {"label": np.array([0, 1, 4])}, "label 4 for 3 samples"),
    (3, {"label": np.array([0, 1])}, "2 labels for 3 samples"),
    (3, {"top_k": 13}, r"top_k=13: should be in 1\.\.12"),
    (3, {"temperature": -1.0}, "temperature=-1.0"),
  ],
)
def test_refuses(classes, options, text):
  model = var.Model(**{**OPTIONS, "num_classes": classes})
  with pytest.raises(UserError, match=text) as error:
    generate(model, {"params": {}}, **options)
  assert "\n" not in str(error.value)


def test_one_scale_is_fully_guided():
  """There is no ramp to climb."""
  text, sides = "residual_vq(12, 4, (3,))", (3,)
  made, own = util.initial(text, 8, 9)
  model = var.Model(**{**OPTIONS, "scales": sides})
  variables = axes.unbox(
    jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 0, 4)))
  )
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.15 * rng.normal(size=x.shape).astype(np.float32)
  variables = jax.tree.map(move, variables)
  codes = scales.generate(
    model, variables, made, own["params"], jax.random.key(0), 3, LABEL,
    guidance=4.0, temperature=0,
  )  # fmt: skip
  run = jax.jit(lambda v, label: model.apply(v, jnp.zeros((3, 0, 4)), label)[0])
  a, b = run(variables, LABEL), run(variables, np.full(3, 3))
  np.testing.assert_array_equal((b + 4 * (a - b)).argmax(-1), codes)
  assert residual_vq.split(codes, sides)[0].shape == (3, 9)
