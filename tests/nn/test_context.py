"""Attention over tokens on eight devices equals attention on one."""

import json

import pytest

from tests.nn import context_checks
from tests.runs import python

QUICK = [
  "gather_equals_the_reference",
  "ring_equals_the_reference",
  "ulysses_equals_the_reference",
  "each_moves_what_it_says",
  "whole_models",
  "kernels_run_on_their_own_heads",
  "too_few_heads_are_refused",
]
SLOW = [
  "gather_in_blocks_equals_the_reference",
  "ring_in_blocks_equals_the_reference",
  "half_precision",
  "long_sequences",
]


def checked(names):
  """Name -> what is wrong, of one process with eight devices."""
  run = python("-m", "tests.nn.context_checks", *names, JAX_NUM_CPU_DEVICES="8")
  assert run.returncode == 0, run.stderr[-3000:]
  found = json.loads(run.stdout.splitlines()[-1])
  assert sorted(found) == sorted(names)
  return found


@pytest.fixture(scope="module")
def quick():
  return checked(QUICK)


@pytest.fixture(scope="module")
def slow():
  return checked(SLOW)


@pytest.mark.parametrize("name", QUICK)
def test_eight_devices(quick, name):
  assert quick[name] == "", quick[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_eight_devices_at_length(slow, name):
  assert slow[name] == "", slow[name]


def test_every_check_is_asked_for():
  there = [check.__name__ for check in context_checks.CHECKS]
  assert sorted(there) == sorted(QUICK + SLOW)
