"""Errors a user can cause and mend: the command prints one line, exit 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """Bad input. The text says what is wrong, where, and what would be right."""


def nearest(word: str, words: Iterable[str]) -> str:
  """`", did you mean 'width'?"`, or the choices when none is near."""
  words = [str(w) for w in words]
  close = difflib.get_close_matches(str(word), words, 1, 0.5)
  if close:
    return f", did you mean {close[0]!r}?"
  return f" (one of: {', '.join(words)})" if words else ""
