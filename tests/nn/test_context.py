"""Attention over tokens on eight devices equals attention on one."""

import json

import pytest

from tests.runs import python

NAMES = [
  "gather_equals_the_reference",
  "gather_in_blocks_equals_the_reference",
  "ring_equals_the_reference",
  "ring_in_blocks_equals_the_reference",
  "ulysses_equals_the_reference",
  "half_precision",
  "each_moves_what_it_says",
  "whole_models",
  "kernels_run_on_their_own_heads",
  "long_sequences",
  "too_few_heads_are_refused",
]


@pytest.fixture(scope="module")
def results():
  run = python("-m", "tests.nn.context_checks", JAX_NUM_CPU_DEVICES="8")
  assert run.returncode == 0, run.stderr[-3000:]
  return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices(results, name):
  assert results[name] == "", results[name]


def test_every_check_is_named(results):
  assert sorted(results) == sorted(NAMES)
