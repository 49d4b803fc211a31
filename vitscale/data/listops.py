"""ListOps: nested lists of digits under MIN, MAX, MED and SUM_MOD.

    [MAX 4 3 [MIN 2 3 ] 1 0 [MED 1 5 8 9 2 ] ]   ->   5

Nangia and Bowman (1804.06028), at the length and by the rules of the Long
Range Arena (Tay et al., 2011.04006, section 2.2.1; its released generator):
a node below the last level is an operator with probability 1/4, else a digit;
operators and digits are drawn uniformly, and so is the number of arguments,
2 to `args`; MED rounds down, SUM_MOD is the sum modulo 10. What is shorter or
longer than asked is drawn anew. Length counts digits, operators and brackets,
none of the binary parentheses that the released files have and its tokeniser
drops.

Sample i of a split is a pure function of (seed, split, i). Splits can't share
an expression: a hash of it says which of the three it belongs to. (The
released generator draws 100,000 different ones and cuts them in three.)
"""

import dataclasses

import numpy as np

from vitscale.core.errors import UserError
from vitscale.data import source
from vitscale.data.random import Rng, mix

OPERATORS = ("MIN", "MAX", "MED", "SM")
PAD, DIGIT, OPERATOR = 0, 1, 11  # first token of each kind
CLOSE = OPERATOR + len(OPERATORS)
VOCABULARY = CLOSE + 1
# What `TOKENS[t]` is called in the released files.
TOKENS = ("", *"0123456789", *(f"[{name}" for name in OPERATORS), "]")
SIZES = {"train": 96_000, "val": 2_000, "test": 2_000}

_BRANCH = 0.25  # probability of an operator
_TRIES = 1 << 14  # per sample
_BLOCK = 4096  # trees at once


def listops(
  split: str = "train",
  n: int | None = None,
  *,
  min_length: int = 500,
  max_length: int = 2000,
  depth: int = 10,
  args: int = 10,
  seed: int = 0,
) -> source.Source:
  """Generated ListOps, as images (1, max_length, 1) of tokens.

  Args:
    split: "train", "val" or "test": different expressions.
    n: samples; None for as many as were published.
    min_length, max_length: tokens of an expression lie strictly between.
    depth: levels of a tree; the last one holds digits alone.
    args: most arguments of an operator.
    seed: of the whole set.

  Returns:
    a source of tokens below `VOCABULARY`, 0 behind the end; the label is the
    value of the expression.

  Raises:
    UserError: unknown split, or no expression is that long.
  """
  source.check_split(split)
  n = SIZES[split] if n is None else n
  if n < 1 or depth < 2 or args < 2:
    raise UserError(
      f"listops: need n >= 1, depth >= 2 and args >= 2, got n={n},"
      f" depth={depth}, args={args}"
    )
  if not 1 <= min_length < max_length - 1:
    raise UserError(
      f"listops: lengths lie between min_length={min_length} and"
      f" max_length={max_length}: want 1 <= min_length < max_length - 1"
    )
  tokens = np.zeros((n, max_length), np.uint8)
  label = np.zeros(n, np.int32)
  for start in range(0, n, _BLOCK):
    ids = np.arange(start, min(start + _BLOCK, n))
    tokens[ids], label[ids] = _draw(
      seed, split, ids, (min_length, max_length), depth, args
    )
  return sequences(tokens[:, None], label, [str(i) for i in range(10)])


def sequences(tokens, label, class_names) -> source.Source:
  """A source of token sequences (n, rows, length) uint8, held in memory.

  Mean and standard deviation are such that normalising changes no token.
  """
  image = tokens[..., None]
  print_ = source.digest(image, np.asarray(label, np.int32))
  return source.in_memory(image, label, class_names, (0.0,), (1 / 255,), print_)


def _draw(seed, split, ids, lengths, depth, args):
  """Tokens (b, max_length) and values (b,) of the samples `ids`."""
  tokens = np.zeros((len(ids), lengths[1]), np.uint8)
  values = np.zeros(len(ids), np.int64)
  left, tried = np.arange(len(ids)), 0
  while len(left):
    if tried >= _TRIES:
      raise UserError(
        f"listops: hardly any expression of depth {depth} has more than"
        f" {lengths[0]} and fewer than {lengths[1]} tokens: widen"
        " min_length and max_length"
      )
    # Many tries at once where few samples are left.
    tries = max(1, _BLOCK // len(left))
    attempt = np.tile(np.arange(tried, tried + tries), len(left))
    rng = Rng(seed, attempt, np.repeat(ids[left], tries))
    keys = rng.scope(f"listops/{split}").bits("tree")[:, 0]
    forest, size = _grow(keys, depth, args, lengths[1])
    good = (size > lengths[0]) & (size < lengths[1])
    mine = np.zeros(len(keys), bool)
    mine[good] = forest.keep(good).split() == source.SPLITS.index(split)
    mine = mine.reshape(len(left), tries)
    first = mine & (mine.cumsum(1) == 1)  # the first try that does
    found = left[first.any(1)]
    tokens[found], values[found] = forest.keep(first.ravel()).read(lengths[1])
    left, tried = left[~first.any(1)], tried + tries
  return tokens, values


# ---------------------------------------------------------------------- trees


@dataclasses.dataclass(frozen=True)
class Level:
  """All nodes of one depth, tree by tree, children beside their siblings.

  Attributes:
    tree: (m,) which tree.
    kind: (m,) 0 to 9 a digit, 10 to 13 an operator.
    args: (m,) children, 0 of a digit.
  """

  tree: np.ndarray
  kind: np.ndarray
  args: np.ndarray

  @property
  def operator(self) -> np.ndarray:
    return self.args > 0

  @property
  def first(self) -> np.ndarray:
    """Index in the next level of the first child of every operator."""
    return (np.cumsum(self.args) - self.args)[self.operator]


@dataclasses.dataclass(frozen=True)
class Forest:
  """`trees` expressions as levels, the roots first."""

  levels: list[Level]
  trees: int

  def keep(self, which: np.ndarray) -> "Forest":
    """The trees where `which` (trees,) holds."""
    number = np.cumsum(which) - 1
    levels = []
    for x in self.levels:
      mine = which[x.tree]
      levels.append(Level(number[x.tree[mine]], x.kind[mine], x.args[mine]))
    return Forest(levels, int(which.sum()))

  def split(self) -> np.ndarray:
    """(trees,) 0, 1 or 2 by a hash of each expression."""
    total = np.zeros(self.trees, np.uint64)
    before = np.zeros(self.trees, np.int64)  # nodes in the levels above
    for x in self.levels:
      count = np.bincount(x.tree, minlength=self.trees)
      start = np.cumsum(count) - count
      place = before[x.tree] + np.arange(len(x.tree)) - start[x.tree]
      word = mix((place << 16 | x.args << 8 | x.kind).astype(np.uint64))
      some = count > 0
      if some.any():
        total[some] += np.add.reduceat(word, start[some])
      before += count
    return (mix(total) % np.uint64(len(source.SPLITS))).astype(np.int64)

  def read(self, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (trees, length), padded, and the value of every tree."""
    sizes = [np.ones(len(x.tree), np.int64) for x in self.levels]
    values = [x.kind.copy() for x in self.levels]
    for d in range(len(self.levels) - 2, -1, -1):
      x = self.levels[d]
      if len(x.first):
        sizes[d][x.operator] += 1 + np.add.reduceat(sizes[d + 1], x.first)
        values[d][x.operator] = _evaluate(x, values[d + 1])
    tokens = np.zeros((self.trees, length), np.uint8)
    place = np.zeros(self.trees, np.int64)
    for d, (x, size) in enumerate(zip(self.levels, sizes)):
      if not len(x.tree):
        break
      tokens[x.tree, place] = x.kind + DIGIT  # operators follow the digits
      last = (place + size - 1)[x.operator]
      tokens[x.tree[x.operator], last] = CLOSE
      if len(x.first):
        ahead = np.cumsum(sizes[d + 1]) - sizes[d + 1]
        ahead -= np.repeat(ahead[x.first], x.args[x.operator])
        place = np.repeat(place + 1, x.args) + ahead
    return tokens, values[0]


def _grow(
  keys: np.ndarray, depth: int, args: int, longest: int
) -> tuple[Forest, np.ndarray]:
  """A tree for every key, and its tokens: two of an operator, one of a digit.

  What can't stay below `longest` grows no further and counts as that. The root
  is an operator: a lone digit is shorter than anything asked for.
  """
  trees = len(keys)
  size = np.zeros(trees, np.int64)
  number = np.zeros(trees, np.uint64)  # nodes so far
  tree, levels = np.arange(trees), []
  for d in range(1, depth + 1):
    count = np.bincount(tree, minlength=trees)
    start = np.cumsum(count) - count
    place = number[tree] + (np.arange(len(tree)) - start[tree]).astype(
      np.uint64
    )
    u = (mix(keys[tree] ^ mix(place)) >> np.uint64(11)) * 2.0**-53
    number += count.astype(np.uint64)
    # One number says it all: what it is, which, and of how many arguments.
    branch = {1: 1.0, depth: 0.0}.get(d, _BRANCH)
    operator = u < branch
    digit = (u - branch) / (1 - branch) * 10 if branch < 1 else u
    choice = u / branch * len(OPERATORS) * (args - 1) if branch else u
    which, more = np.divmod(choice.astype(np.int64), args - 1)
    kind = np.where(operator, 10 + which, digit.astype(np.int64))
    below = np.where(operator, 2 + more, 0)
    levels.append(Level(tree, kind, below))
    size += np.bincount(tree, 1 + operator, trees).astype(np.int64)
    least = size + np.bincount(tree, below, trees).astype(np.int64)
    alive = least < longest
    tree = np.repeat(tree, np.where(alive[tree], below, 0))
    size = np.where(alive, size, longest)
  return Forest(levels, trees), size


def _evaluate(x: Level, value: np.ndarray) -> np.ndarray:
  """Values of a level's operators from those of the level below."""
  first, args = x.first, x.args[x.operator]
  order = np.lexsort((value, np.repeat(np.arange(len(args)), args)))
  ranked = value[order]
  low, high = ranked[first + (args - 1) // 2], ranked[first + args // 2]
  found = (
    np.minimum.reduceat(value, first),
    np.maximum.reduceat(value, first),
    (low + high) // 2,
    np.add.reduceat(value, first) % 10,
  )
  return np.choose(x.kind[x.operator] - 10, found)
