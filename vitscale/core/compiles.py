"""Which programs jax compiles, while somebody wants to know."""

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import Any

import jax

EVENT = "/jax/core/compile/backend_compile_duration"  # cached ones too
_here = threading.local()


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
  """Names of what this thread compiles inside, as it goes on.

  Who watches around it hears of them at its end.
  """
  _register()
  before, _here.names = getattr(_here, "names", None), []
  try:
    yield _here.names
  finally:
    if before is not None:
      before += _here.names
    _here.names = before


@functools.cache
def _register() -> None:
  """Once a process: jax keeps its listeners."""
  jax.monitoring.register_event_duration_secs_listener(_hear)


def _hear(event: str, _seconds: float, **facts: Any) -> None:
  names = getattr(_here, "names", None)
  if names is not None and event == EVENT:
    names.append(str(facts.get("fun_name", "a program")))
