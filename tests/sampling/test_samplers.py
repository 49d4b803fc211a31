"""Samplers on data whose exact prediction is known, and guidance of a model.

Data are normal of mean M and deviation S. Then the best prediction is linear
in x, and the equation's exact end of noise z is M + S z (flow); a solver's map
of z is linear too, so that two numbers tell its mean and deviation exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitscale.core import axes, compiles
from vitscale.core.errors import UserError
from vitscale.models import dit
from vitscale.sampling import process as process_lib
from vitscale.sampling import samplers
from vitscale.sampling.process import Process

M, S = 0.7, 0.5
FLOW = Process()


def best(process):
  """The prediction of least squared error."""

  def predict(x, t):
    alpha, sigma = process_lib.levels(process, t)
    z = (x - alpha * M) / (alpha**2 * S**2 + sigma**2)
    noise, data = sigma * z, M + alpha * S**2 * z
    return noise - data if process.kind == "flow" else noise

  return predict


@functools.cache
def moments(process, sampler, steps):
  """(mean, deviation) of what a solver makes of normal noise."""
  ends = samplers.integrate(
    best(process), jnp.asarray([0.0, 1.0]), process,
    sampler=sampler, steps=steps,
  )  # fmt: skip
  at_zero, at_one = np.asarray(ends, float)
  return at_zero, at_one - at_zero


def far(*asked):
  mean, deviation = moments(*asked)
  return abs(mean - M) + abs(deviation - S)


@pytest.mark.parametrize("sampler, order", [("euler", 1), ("heun", 2)])
@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_flow_reaches_the_data_at_its_order(sampler, order, shift):
  process = Process(shift=shift)
  errors = [far(process, sampler, n) for n in (16, 32, 64)]
  rates = np.log2(np.divide(errors[:-1], errors[1:]))
  assert (abs(rates - order) < 0.25).all(), (errors, rates)
  assert errors[-1] < (0.03 if order == 1 else 1e-3)


@pytest.mark.parametrize("schedule", process_lib.SCHEDULES)
def test_ddim_reaches_the_data(schedule):
  """Its exact end from a start that keeps alpha(1) of the data."""
  process = Process("ddpm", schedule)
  alpha, sigma = (float(x) for x in process_lib.levels(process, 0.999))
  start = np.sqrt(alpha**2 * S**2 + sigma**2)
  want = M - S * alpha * M / start, S / start
  errors = [
    np.abs(np.subtract(moments(process, "ddim", n), want)).sum()
    for n in (25, 50, 100, 1000)
  ]
  assert (np.diff(errors) < 0).all(), errors
  assert errors[-1] < 0.01
  rates = np.log2(np.divide(errors[:2], errors[1:3]))
  assert (rates > 0.7).all() and (rates < 1.5).all(), rates


def test_samples_are_normal_of_that_mean_and_deviation():
  noise = jax.random.normal(jax.random.key(0), (4000,))
  made = samplers.integrate(best(FLOW), noise, FLOW, sampler="heun", steps=64)
  assert abs(made.mean() - M) < 4 * S / 4000**0.5
  assert abs(made.std() - S) < 4 * S / 8000**0.5


@pytest.mark.parametrize("learned", [False, True])
def test_ancestors_are_normal_of_that_mean_and_deviation(learned):
  """Steps back are drawn; half of the log variance between its two ends."""
  process, n = Process("ddpm"), 4000
  eps = best(process)

  def predict(x, t):
    return (eps(x, t), jnp.zeros_like(x)) if learned else eps(x, t)

  noise, again = (jax.random.normal(jax.random.key(i), (n,)) for i in (0, 1))
  run = jax.jit(
    lambda noise, key: samplers.integrate(
      predict, noise, process, sampler="ancestral", steps=250, key=key
    )
  )
  made = run(noise, jax.random.key(2))
  assert abs(made.mean() - M) < 4 * S / n**0.5 + 0.01
  assert abs(made.std() - S) < 4 * S / (2 * n) ** 0.5 + 0.02
  other = run(noise, jax.random.key(3))  # what is drawn decides, not the start
  assert abs(np.corrcoef(made, other)[0, 1]) < 0.1
  assert abs(np.corrcoef(made, run(again, jax.random.key(2)))[0, 1]) > 0.9


def test_one_step_of_euler_and_of_heun_are_the_same():
  assert moments(FLOW, "heun", 1) == moments(FLOW, "euler", 1)


# ------------------------------------------------------------------ guidance


@functools.cache
def toy(num_classes=3):
  model = dit.Model(
    **{**dit.variant("mu/4"), "depth": 1}, num_classes=num_classes, channels=5
  )
  noise = np.random.default_rng(0).normal(size=(2, 8, 8, 5)).astype(np.float32)
  variables = axes.unbox(jax.jit(model.init)(jax.random.key(0), noise))
  rng = np.random.default_rng(1)
  move = lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32)
  return model, jax.tree.map(move, variables), noise


def generate(label=(0, 2), **options):
  model, variables, noise = toy()
  asked = {"process": FLOW, "sampler": "euler", "steps": 3} | options
  return np.asarray(
    samplers.generate(model, variables, noise, label, **asked)
  )  # fmt: skip


def test_guidance_of_1_is_none():
  plain = generate()
  np.testing.assert_allclose(generate(guidance=1.0), plain, atol=1e-5)
  assert np.abs(generate(guidance=3.0) - plain).max() > 1e-3


def test_guidance_of_0_is_no_class():
  np.testing.assert_allclose(
    generate(guidance=0.0), generate(label=None), atol=1e-5
  )


def test_guidance_is_linear_on_every_channel():
  model, variables, noise = toy()
  label = jnp.asarray([0, 2])
  ask = lambda w: samplers.guided(
    model, variables, label, jnp.asarray([w, 0.0, 1.0]), noise, jnp.asarray(0.5)
  )
  none, one, three = (np.asarray(jax.jit(ask)(w)) for w in (0.0, 1.0, 3.0))
  np.testing.assert_allclose(three, none + 3 * (one - none), atol=1e-4)
  assert (np.abs(three - one).max((0, 1, 2)) > 1e-3).all()


def test_guidance_acts_on_its_interval_alone():
  """Euler's three steps ask at 1, 2/3 and 1/3."""
  plain, full = generate(), generate(guidance=3.0)
  off = generate(guidance=3.0, interval=(0.4, 0.6))
  np.testing.assert_allclose(off, plain, atol=1e-5)
  part = generate(guidance=3.0, interval=(0.0, 0.7))
  assert min(np.abs(part - x).max() for x in (plain, full)) > 1e-4


def test_a_call_compiles_one_program_and_another_weight_none():
  asked = {"steps": 4, "sampler": "heun", "guidance": 2.0}
  with compiles.watched() as names:
    generate(**asked)
  assert len([name for name in names if "_generate" in name]) == 1, names
  assert len(names) == 1, names
  with compiles.watched() as names:
    generate(**{**asked, "guidance": 4.0}, interval=(0.1, 0.9))
  assert not names


@pytest.mark.parametrize(
  "options, text",
  [
    ({"sampler": "heum"}, "sampler 'heum'.*'heun'"),
    ({"sampler": "ddim"}, "is of ddpm, the process is flow: use 'euler' or"),
    ({"steps": 0}, "steps=0: should be 1 or more"),
    (
      {"sampler": "ddim", "process": Process("ddpm"), "steps": 1001},
      "should be 1 to 1000",
    ),
    ({"label": (0, 4)}, r"label 4 for 2 samples: should be one of 0\.\.3"),
    ({"label": (0,)}, "1 labels for 2 samples"),
    ({"label": None, "guidance": 2.0}, "guidance=2.0 needs labels"),
    ({"interval": (0.7, 0.2)}, r"interval=\(0.7, 0.2\): should be two times"),
  ],
)
def test_refuses(options, text):
  with pytest.raises(UserError, match=text) as error:
    generate(**options)
  assert "\n" not in str(error.value)


def test_a_model_without_classes_has_no_guidance():
  model, variables, noise = toy(num_classes=0)
  ask = functools.partial(
    samplers.generate, model, variables, noise, process=FLOW, sampler="euler"
  )
  with pytest.raises(UserError, match="no classes to be guided to") as error:
    ask(guidance=2.0)
  assert "\n" not in str(error.value)
  assert np.isfinite(ask(steps=1)).all()
