"""Collectives of a compiled program, read off XLA's text.

A collective inside a loop counts once per round: computations are weighted by
how often they run, from the entry on. Sizes are per device:

    bytes       the whole array: gathered result, or what is summed up
    wire_bytes  what a device must send at the least, (n - 1) / n of it for
                gathering, scattering and exchanging among n, twice that for
                an all-reduce
    far_bytes   the part of wire_bytes that has to leave the slice, when slices
                first reduce (or last gather) among themselves

The TPU compiler splits what spans slices into collectives of one slice and
transfers through the hosts; the latter are kinds of their own, `dcn-all-reduce`
and so on, whose wire_bytes are all far.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
)
_BITS = {
  "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
  "bf16": 16, "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64,
  "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_FLOAT8 = re.compile(r"f8\w+")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"[\])}] ([a-z][a-z0-9\-]*)\(")
_CALLED = re.compile(r"(\w+)=\{?((?:%[\w.\-]+(?:, )?)+)\}?")


@dataclasses.dataclass
class Total:
  """Collectives of one kind in one run of the program, see above."""

  count: int = 0
  bytes: int = 0
  wire_bytes: float = 0.0
  far_bytes: float = 0.0

  def add(self, other: "Total", times: int = 1) -> None:
    self.count += other.count * times
    self.bytes += other.bytes * times
    self.wire_bytes += other.wire_bytes * times
    self.far_bytes += other.far_bytes * times


def collectives(
  text: str, *, devices: int, island: int | None = None
) -> dict[str, Total]:
  """Collectives by kind of an optimised HLO module.

  Args:
    text: `compiled.as_text()`.
    devices: partitions of the program.
    island: devices of a slice, numbered in a row; None for all.

  Raises:
    ValueError: a loop with a collective whose trip count isn't in the text.
  """
  bodies, entry = _computations(text)
  return _Reader(bodies, devices, island or devices).read(entry)


class _Reader:
  def __init__(
    self, bodies: Mapping[str, list[str]], devices: int, island: int
  ):
    self.bodies, self.devices, self.island = bodies, devices, island
    self.seen: dict[str, dict[str, Total]] = {}
    self.chains: set[str] = set()

  def read(self, name: str) -> dict[str, Total]:
    """Totals of one run of a computation, those it calls included."""
    if name in self.seen:
      return self.seen[name]
    totals: dict[str, Total] = {}
    for line in self.bodies.get(name, ()):
      opcode = _opcode(line)
      if opcode is None or opcode in ("async-done", "async-update"):
        continue
      kind = opcode.removesuffix("-start")
      if kind in KINDS and not self._continued(line):
        # TPUs fuse a reduce-scatter out of an all-reduce and a slice.
        fused = "reduce-scatter" in name or "all-reduce-scatter" in name
        kind = "reduce-scatter" if fused and kind == "all-reduce" else kind
        one = self._one(kind, opcode, line)
        if one:
          totals.setdefault(kind, Total()).add(one)
      if kind in KINDS:
        continue
      if opcode == "send" and "megascale_transfer_type" in line:
        kind, one = self._transfer(line)
        totals.setdefault(kind, Total()).add(one)
        continue
      for role, called in _calls(line):
        inner = self.read(called)
        if not inner:
          continue
        times = self._trips(line) if role in ("body", "condition") else 1
        for kind, total in inner.items():
          totals.setdefault(kind, Total()).add(total, times)
    self.seen[name] = totals
    return totals

  def _continued(self, line: str) -> bool:
    """Whether this is a later piece of a collective seen before.

    TPUs spread one collective over several fusions that compute meanwhile;
    the pieces share a channel.
    """
    if "chain_id=" not in line:
      return False
    channel = re.search(r"channel_id=(\d+)", line)
    name = channel[1] if channel else line
    known = name in self.chains
    self.chains.add(name)
    return known

  def _one(self, kind: str, opcode: str, line: str) -> Total | None:
    result, _, rest = line.partition(f" {opcode}(")
    sizes = _sizes(result.partition(" = ")[2])
    if opcode.endswith("-start") and kind in (
      "all-gather",
      "collective-permute",
    ):
      # (operands..., results..., contexts): results follow as many operands.
      n = max(_operands(rest), 1)
      sizes = sizes[n : 2 * n]
    size = sum(sizes)
    group, slices = self._group(kind, rest)
    if group == 1:
      return None
    if kind == "reduce-scatter" and opcode.startswith("reduce-scatter"):
      size *= group
    each = group // slices  # members in one slice
    share = (group - 1) / group
    far = (slices - 1) / slices / each
    if kind == "all-reduce":
      share, far = 2 * share, 2 * far
    if kind == "collective-permute":
      share, far = 1.0, float(slices > 1)
    elif kind == "all-to-all":
      far = (slices - 1) / slices
    return Total(1, size, size * share, size * far)

  def _transfer(self, line: str) -> tuple[str, Total]:
    """What a device sends to its fellows in other slices."""
    found = re.search(r'megascale_transfer_type="(\w+)"', line)
    kind = found[1].lower().replace("_", "-")
    size = _sizes(line.partition(" = ")[2].partition(" send(")[0])[0]
    slices = self.devices // self.island
    share = (slices - 1) / slices
    shares = {"all-reduce": 2 * share, "all-gather": slices - 1.0}
    far = size * shares.get(kind, share if "-to-" not in kind else 1.0)
    return f"dcn-{kind}", Total(1, size, far, far)

  def _group(self, kind: str, rest: str) -> tuple[int, int]:
    """Members of a group, and over how many slices they lie."""
    if kind == "collective-permute":
      pairs = re.findall(r"\{(\d+),(\d+)\}", rest.partition("pairs=")[2])
      far = any(self._slice(int(a)) != self._slice(int(b)) for a, b in pairs)
      return (2 if pairs else 1), 2 if far else 1
    first = _first_group(rest, self.devices)
    return len(first), len({self._slice(i) for i in first})

  def _slice(self, device: int) -> int:
    return device // self.island

  def _trips(self, line: str) -> int:
    """Rounds of a while loop."""
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
    if known:
      return int(known[1])
    condition = dict(_calls(line)).get("condition", "")
    limits = []
    for test in self.bodies.get(condition, ()):
      limits += re.findall(r"[su]32\[\]\S* constant\((\d+)\)", test)
    if len(limits) == 1:
      return int(limits[0])
    raise ValueError(f"loop of unknown length with collectives: {line[:80]}")


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Lines of every computation by its name, and the entry's name."""
  bodies: dict[str, list[str]] = {}
  entry, lines = "", None
  for line in text.splitlines():
    if line[:1] not in (" ", "}", ""):
      head = _HEAD.match(line)
      if head and " = " not in line.partition("(")[0]:
        lines = bodies.setdefault(head[2], [])
        entry = head[2] if head[1] else entry
    elif lines is not None and line.startswith(" "):
      lines.append(line.strip())
  return bodies, entry


def _opcode(line: str) -> str | None:
  found = _LINE.match(line)
  if not found:
    return None
  opcode = _OPCODE.search(found[2])
  return opcode[1] if opcode else None


def _calls(line: str) -> Iterator[tuple[str, str]]:
  """(role, computation) of everything an instruction calls."""
  for role, names in _CALLED.findall(line):
    for name in re.findall(r"%([\w.\-]+)", names):
      yield role, name


def _sizes(text: str) -> list[int]:
  """Bytes of each array in a type, those of a tuple in order."""
  found = []
  for kind, dims in _ARRAY.findall(text):
    bits = _BITS.get(kind, 8 if _FLOAT8.fullmatch(kind) else None)
    if bits is not None:
      count = math.prod(int(d) for d in dims.split(",") if d)
      found.append(math.ceil(count * bits / 8))
  return found


def _operands(rest: str) -> int:
  """How many operands stand before the closing parenthesis."""
  depth, count = 0, 0
  for i, letter in enumerate(rest):
    if letter in "([{":
      depth += 1
    elif letter in ")]}":
      if depth == 0:
        return count
      depth -= 1
    elif letter == "%" and depth == 0 and (i == 0 or rest[i - 1] in " ,("):
      count += 1
  return count


def _first_group(rest: str, devices: int) -> list[int]:
  """Members of the first replica group, as numbers of devices."""
  meshed = re.search(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", rest
  )
  if meshed:
    return _meshed(*meshed.groups())
  iota = re.search(
    r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest
  )
  if iota:
    size = int(iota[2])
    dims = [int(d) for d in iota[3].split(",")]
    order = [int(d) for d in (iota[4] or "").split(",") if d]
    return [_iota(i, dims, order) for i in range(size)]
  listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
  if listed:
    return [int(i) for i in listed[1].split(",")]
  return list(range(devices))


def _meshed(axes: str, order: str | None, among: str) -> list[int]:
  """The first group of `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`."""
  sizes = {name: int(size) for name, size in re.findall(r"'(.*?)'=(\d+)", axes)}
  named = re.findall(r"'(.*?)'", among)
  found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order or "")
  numbers = lambda text: [int(n) for n in (text or "").split(",") if n]
  dims, turn = (numbers(found[1]), numbers(found[2])) if found else ([], [])
  members = [0]
  stride = math.prod(sizes.values())
  for name, size in sizes.items():
    stride //= size
    if name in named:
      members = [m + i * stride for m in members for i in range(size)]
  return [_iota(i, dims, turn) for i in members]


def _iota(index: int, dims: list[int], order: list[int]) -> int:
  """Entry `index` of iota(dims), transposed by `order` and flattened."""
  if not order:
    return index
  shape = [dims[axis] for axis in order]
  where = []
  for size in reversed(shape):
    index, at = divmod(index, size)
    where.append(at)
  where.reverse()
  back = [0] * len(dims)
  for position, axis in enumerate(order):
    back[axis] = where[position]
  flat = 0
  for size, at in zip(dims, back):
    flat = flat * size + at
  return flat
