"""Marks of cases that the quick tests leave out."""

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], *quick: Any) -> list[Any]:
  """Cases of a parameter: all but `quick` are for `make test-all` alone.

  For parameters that each compile a program of their own, where one or two of
  them say what all do.
  """
  cases = list(cases)
  assert all(case in cases for case in quick), quick
  return [
    case if case in quick else pytest.param(case, marks=pytest.mark.slow)
    for case in cases
  ]
