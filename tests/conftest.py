"""Tests run on CPU, compile little and cache what they compile."""

import os
import tempfile
from pathlib import Path

CACHE = os.environ.get("VITSCALE_TEST_CACHE") or str(
  Path(tempfile.gettempdir()) / "vitscale-test-cache"
)
SETTINGS = {
  "JAX_PLATFORMS": "cpu",
  # One fifth of the compile time; numerics stay float32.
  "XLA_FLAGS": "--xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true",
  # Each worker has one core; BLAS threads of two would wait for each other.
  "OPENBLAS_NUM_THREADS": "1",
  "JAX_COMPILATION_CACHE_DIR": CACHE,
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}
# Before jax is imported, here and in every process a test starts.
for key, value in SETTINGS.items():
  os.environ.setdefault(key, value)

import signal  # noqa: E402

# A shell starts what it runs in the background deaf to Ctrl-C, and children
# inherit that: tests that send SIGINT need ears.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)


import pytest  # noqa: E402

# A compiled program takes several mappings of memory, of which a process may
# have 65,530 (Linux): beyond them XLA ends the process. Files share few.
MAPPINGS = 25_000


@pytest.fixture(scope="module", autouse=True)
def programs():
  """Lets go of what was compiled when there is too much of it."""
  yield
  try:
    with open("/proc/self/maps") as file:
      count = sum(1 for _ in file)
  except OSError:  # no Linux, no such limit
    return
  if count > MAPPINGS:
    import gc

    import jax

    jax.clear_caches()
    gc.collect()
