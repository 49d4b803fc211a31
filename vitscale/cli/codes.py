"""Exit codes, and the one line that bad input gets."""

import sys

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 75


def complain(text: str) -> int:
  """Says what is wrong, in one line; returns the exit code."""
  print(f"vitscale: {' '.join(text.split())}", file=sys.stderr)
  return BAD_INPUT
