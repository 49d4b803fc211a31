"""Configs: plain Python files with `get_config(arg)`, locked and fully read.

    config = config.load("configs/vit_fashion.py:patch=4", ["optim.lr=3e-3"])

Arguments and overrides are typed by the value they replace. Whoever builds
from a config reads it through `Reader`, which remembers what was read: a key
that nobody reads is an error before anything compiles.
"""

import ast
import difflib
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from vitscale.core.duration import UNITS
from vitscale.core.duration import steps as steps
from vitscale.core.errors import UserError, nearest
from vitscale.core.log import read_json

ConfigDict = ml_collections.ConfigDict

# Where and how a run executes; equal physics gives an equal digest.
NOT_PHYSICS = (
  "log",
  "checkpoint",
  "watchdog",
  "mesh",
  "workers",
  "rules",
  "name",
  "law_variables",
  "data.path",  # a moved folder is the same data: its fingerprint is compared
)


# ------------------------------------------------------------------ loading


def find(name: str, folder: str, filename: str = "{}.py") -> Path:
  """The file of a config or study: a path, or a name in `folder`.

  Looks at the path itself, then ./folder, then the folder that travels with
  the package. Raises UserError with the nearest name.
  """
  import vitscale

  package = Path(vitscale.__file__).parent
  places = [Path(folder), package / folder, package.parent / folder]
  direct = Path(name)
  for path in (direct, direct / Path(filename).name):
    if path.is_file():
      return path
  for place in places:
    path = place / filename.format(name)
    if path.is_file():
      return path
  found = {
    str(p.relative_to(place)).replace(filename.format(""), "").strip("/")
    for place in places
    for p in place.glob(filename.format("*"))
    if not p.name.startswith("_")
  }
  raise UserError(
    f"no {folder.rstrip('s')} {name!r}{nearest(name, sorted(found))}"
  )


def load(spec: str, overrides: Iterable[str] = ()) -> ConfigDict:
  """Loads `FILE.py[:args]`, applies `key=value` overrides, locks the result.

  What a config must keep whatever is overridden, its module's `check(config)`
  says, if it has one.

  Args:
    spec: path of a config file or the name of one in configs/, with
      arguments for its `get_config` behind a colon; or a .json file with a
      resolved config, as launchers write it.
    overrides: dotted `key=value` strings.

  Raises:
    UserError: no such file, no get_config, bad argument or override.
  """
  name, _, arg = spec.partition(":")
  path = find(name, "configs")
  if path.suffix == ".json":
    config = _resolved(path, arg)
    override(config, overrides)
    return config.lock()
  module = load_module(path)
  if not hasattr(module, "get_config"):
    raise UserError(f"{name} has no get_config(arg)")
  config = module.get_config(arg or None)
  if not isinstance(config, ConfigDict):
    raise UserError(
      f"get_config of {name} returned {type(config).__name__}, should be an"
      " ml_collections ConfigDict"
    )
  override(config, overrides)
  getattr(module, "check", lambda _: None)(config)
  return config.lock()


def _resolved(path: Path, arg: str) -> ConfigDict:
  """The config of a .json file; its digest is that of what was written."""
  values = read_json(path)
  if arg or not isinstance(values, dict):
    takes = "takes no arguments" if arg else "is no object of keys and values"
    raise UserError(f"{path} {takes}")
  return ConfigDict(values)


def load_module(path: Path) -> Any:
  """Imports a Python file by path, under a name of its own."""
  if path.suffix != ".py":
    raise UserError(f"{path} is not a Python file")
  name = "vitscale_file_" + "_".join(path.with_suffix("").parts[-2:])
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
  """Parses `"patch=4,runlocal"` against typed defaults; strict.

  A bare name sets a boolean default to True.

  Raises:
    UserError: unknown name (nearest offered) or a value of another type.
  """
  values, given = dict(defaults), set()
  for item in filter(None, (arg or "").split(",")):
    key, equals, text = item.partition("=")
    if key not in defaults:
      raise UserError(
        f"unknown config argument {key!r}{nearest(key, defaults)}"
      )
    if not equals and not isinstance(defaults[key], bool):
      raise UserError(f"config argument {key!r} needs a value: {key}=...")
    if key in given:
      raise UserError(f"config argument {key!r} is given twice")
    given.add(key)
    text = text if equals else "True"
    values[key] = _typed(key, text, defaults[key])
  return ConfigDict(values)


def override(config: ConfigDict, items: Iterable[str]) -> None:
  """Applies `"optim.lr=3e-3"` strings in place, typed by what they replace.

  A duration may change its unit: `total_steps=10` replaces `total_epochs`. A
  key that the config leaves at its default may be set too (`ema=0.999`,
  `mesh.fsdp=4`, `model.drop_path=0.1`).

  Raises:
    UserError: not key=value, unknown key (nearest offered), wrong type.
  """
  for item in items:
    key, equals, text = item.partition("=")
    if not equals:
      raise UserError(f"override {item!r} is not key=value")
    *parents, leaf = key.split(".")
    node = config
    for name in parents:
      node = node.get(name) if isinstance(node, ConfigDict) else None
    found = isinstance(node, ConfigDict)
    old = (leaf if leaf in node else _other_unit(leaf, node)) if found else None
    if old is None:
      _add(config, key, text)
      continue
    if isinstance(node[old], ConfigDict):
      raise UserError(f"config key {key!r} is a group: set one of its keys")
    like = node[old] if old == leaf else 0 if leaf.endswith("_steps") else 0.0
    value = _typed(key, text, like)
    with node.ignore_type(), node.unlocked():
      del node[old]
      node[leaf] = value


# Keys that a config may leave out and their types; the groups below hold
# options of families, tasks and data, which their readers check by name.
OPTIONAL: dict[str, Any] = {
  "ema": 0.0,
  "accumulate": 1,
  "workers": 0,
  "mesh.replica": 1,
  "mesh.fsdp": -1,
  "mesh.tensor": 1,
  "mesh.sequence": 1,
  "log.tensorboard": False,
  "log.wandb": False,
  "log.every_steps": 1,
  "checkpoint.keep": 2,
  "checkpoint.every_steps": 1,
  "checkpoint.keep_every": 0,
  "guard.max_skips": 0,
  "guard.max_rollbacks": 1,
  "init.from": "",
  "init.how": "same",
  "init.optimizer": "fresh",
  "init.rewire": (),
  "init.skip": "",
  "watchdog.seconds": 0.0,
  "watchdog.slow_seconds": 0.0,
}
OPEN = ("model", "task", "optim", "data", "draws", "pack", "rules")


def _add(config: ConfigDict, key: str, text: str) -> None:
  """Sets a key the config doesn't have, if somebody could read it.

  A name close to one the config has is a slip and not a new key.
  """
  value = _typed(key, text, OPTIONAL.get(key))  # nothing is made before
  *parents, leaf = key.split(".")
  node, opened = config, key.partition(".")[0] in OPEN and bool(parents)
  for name in parents:
    if not isinstance(node.get(name), ConfigDict):
      if name in node or not (opened or f"{name}.{leaf}" in OPTIONAL):
        raise UserError(f"unknown config key {key!r}{suggest(key, config)}")
      with node.unlocked():
        node[name] = ConfigDict()
    node = node[name]
  slip = difflib.get_close_matches(leaf, list(node), 1, 0.75)
  if key not in OPTIONAL and (slip or not opened):
    raise UserError(f"unknown config key {key!r}{suggest(key, config)}")
  with node.unlocked():
    node[leaf] = value


def _other_unit(leaf: str, node: Mapping[str, Any]) -> str | None:
  """The key in `node` of the same duration in another unit."""
  prefix, _, unit = leaf.rpartition("_")
  same = [f"{prefix}_{other}" for other in UNITS]
  found = [key for key in same if key in node]
  return found[0] if prefix and unit in UNITS and found else None


def suggest(key: str, config: ConfigDict) -> str:
  """The nearest dotted key; a leaf name alone finds its full path."""
  known = [*flat(config.to_dict()), *OPTIONAL]
  last = key.split(".")[-1]
  same = [name for name in known if name.split(".")[-1] == last]
  return f", did you mean {same[0]!r}?" if same else nearest(key, known)


def _typed(key: str, text: str, like: Any) -> Any:
  """The text as a value of the type of `like` (None accepts any)."""
  try:
    value = ast.literal_eval(text)
  except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
    value = {"true": True, "false": False}.get(text, text)
  if value is None and isinstance(like, int | float):
    raise UserError(f"{key}=None should be {type(like).__name__} like {like!r}")
  return check_type(key, value, like, text)


def check_type(key: str, value: Any, like: Any, text: Any = None) -> Any:
  """`value` if it fits the type of `like` (int widens to float)."""
  text = value if text is None else text
  if isinstance(like, str) and value is not None:
    return str(text) if isinstance(text, str) else value
  if like is None or value is None or type(value) is type(like):
    return value
  if isinstance(like, float) and type(value) is int:
    return float(value)
  if isinstance(like, tuple | list) and isinstance(value, tuple | list):
    return type(like)(value)
  raise UserError(
    f"{key}={text!s} is {type(value).__name__}, should be"
    f" {type(like).__name__} like {like!r}"
  )


# ------------------------------------------------------------------ reading


class Reader(Mapping):
  """A read-only view of a config that remembers which keys were read."""

  def __init__(self, config: Mapping[str, Any], path: str = ""):
    self._path = path
    self._read: set[str] = set()
    self._values = {
      key: Reader(value, f"{path}{key}.")
      if isinstance(value, ConfigDict | dict)
      else value
      for key, value in config.items()
    }

  def __getitem__(self, key: str) -> Any:
    if key not in self._values:
      raise UserError(
        f"config has no key {self._path + key!r}"
        f"{nearest(key, list(self._values))}"
      )
    self._read.add(key)
    return self._values[key]

  def get(self, key: str, default: Any = None) -> Any:
    return self[key] if key in self._values else default

  def group(self, key: str) -> "Reader":
    """The group `key`, empty when the config has none."""
    value = self.get(key)
    return Reader({}) if value is None else value

  def __contains__(self, key: object) -> bool:
    return key in self._values

  def __iter__(self) -> Iterator[str]:
    return iter(self._values)

  def __len__(self) -> int:
    return len(self._values)

  def kwargs(self, *without: str) -> dict[str, Any]:
    """All keys but `without` as a plain dict; counts them as read."""
    return {
      key: value.kwargs() if isinstance(value, Reader) else value
      for key in self._values
      if key not in without
      for value in [self[key]]
    }

  def unread(self) -> list[str]:
    """Dotted paths that nobody read."""
    missed = []
    for key, value in self._values.items():
      if isinstance(value, Reader) and (key in self._read or len(value)):
        missed += value.unread() if key in self._read else [self._path + key]
      elif key not in self._read and not isinstance(value, Reader):
        missed.append(self._path + key)
    return missed

  def assert_all_read(self) -> None:
    """Raises UserError naming the keys nobody read."""
    missed = self.unread()
    if missed:
      known = sorted(self._all_read())
      raise UserError(
        f"config key {missed[0]!r} is read by nobody"
        f"{nearest(missed[0], known)}"
        + (f" (also unread: {', '.join(missed[1:])})" if missed[1:] else "")
      )

  def _all_read(self) -> set[str]:
    names = {self._path + key for key in self._read}
    for value in self._values.values():
      if isinstance(value, Reader):
        names |= value._all_read()
    return names


# ----------------------------------------------------------------- identity


def to_dict(config: Mapping[str, Any]) -> dict[str, Any]:
  """A plain JSON-ready dict (tuples become lists)."""
  if isinstance(config, ConfigDict):
    config = config.to_dict()
  return json.loads(json.dumps(config))


def digest(config: Mapping[str, Any], *, without: Iterable[str] = ()) -> str:
  """Hash of what decides the numbers of a run: physics and package version.

  Args:
    config: a run's config.
    without: further top-level or dotted keys to leave out.
  """
  from vitscale import __version__

  plain = to_dict(config)
  for key in (*NOT_PHYSICS, *without):
    *parents, leaf = key.split(".")
    node = plain
    for name in parents:
      node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict):
      node.pop(leaf, None)
  text = json.dumps([__version__, plain], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """Lines `key: old -> new` for every leaf in which two configs differ."""
  flat_old, flat_new = flat(to_dict(old)), flat(to_dict(new))
  pairs = {
    key: (flat_old.get(key, "(none)"), flat_new.get(key, "(none)"))
    for key in sorted(flat_old | flat_new)
  }
  return [f"{key}: {a} -> {b}" for key, (a, b) in pairs.items() if a != b]


def flat(node: Any, path: str = "") -> dict[str, Any]:
  """Leaves of nested dicts by dotted key."""
  if not isinstance(node, dict):
    return {path: node}
  leaves = {}
  for key, value in node.items():
    leaves |= flat(value, f"{path}.{key}" if path else key)
  return leaves
