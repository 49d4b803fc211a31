import types

import jax
import pytest

from vitscale.core import ceiling


@pytest.fixture
def anew():
  ceiling._measured.cache_clear()
  yield
  ceiling._measured.cache_clear()


def test_measured_once_for_a_process_and_type(anew, monkeypatch):
  calls = []

  def measure(devices, dtype, side, products):
    calls.append((dtype, side))
    return 1e9

  monkeypatch.setattr(ceiling, "_measure", measure)
  for dtype in ("float32", "bfloat16", "float32"):
    assert ceiling.flops_per_second(jax.devices(), dtype) == 1e9
  assert calls == [("float32", 1024), ("bfloat16", 1024)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_counts_the_products_it_timed(dtype, monkeypatch):
  """Of a clock on which each window takes two seconds."""
  ticks = iter(range(0, 1000, 2))
  clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
  monkeypatch.setattr(ceiling, "time", clock)
  devices = tuple(jax.devices()[:1])
  assert ceiling._measure(devices, dtype, 256, 3) == 3 * 2 * 256**3 / 2


def test_a_device_that_can_not_goes_without(anew, monkeypatch):
  def fail(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

  monkeypatch.setattr(ceiling, "_measure", fail)
  assert ceiling.flops_per_second(jax.devices(), "float32") is None
  elsewhere = types.SimpleNamespace(process_index=jax.process_index() + 1)
  assert ceiling.flops_per_second([elsewhere], "float32") is None


def test_the_type_is_the_models():
  assert ceiling.dtype_of(types.SimpleNamespace(dtype="bfloat16")) == "bfloat16"
  assert ceiling.dtype_of(types.SimpleNamespace()) == "float32"
