import threading

import jax
import jax.numpy as jnp

from vitscale.core import compiles


def test_names_of_what_is_compiled_inside():
  double = jax.jit(lambda x: x * 2)
  inputs = [jnp.zeros(n) for n in (3, 4)]
  with compiles.watched() as names:
    double(inputs[0])
  assert len(names) == 1 and "lambda" in names[0]
  double(inputs[1])  # nobody asks
  with compiles.watched() as names:
    double(inputs[0]), double(inputs[1])
  assert names == []


def test_other_threads_are_not_heard():
  x = jnp.zeros(5)
  work = threading.Thread(target=lambda: jax.jit(lambda y: y - 3)(x))
  with compiles.watched() as names:
    work.start()
    work.join()
  assert names == []


def test_one_listener_a_process():
  f = jax.jit(lambda x: x + 7)
  for _ in range(3):
    with compiles.watched():
      pass
  x = jnp.zeros(6)
  with compiles.watched() as names:
    f(x)
  assert len(names) == 1
