"""Configs: strict arguments and overrides, unread keys, durations, identity."""

import pytest
from ml_collections import ConfigDict

from vitscale.core import config as config_lib
from vitscale.core.config import Reader, override, parse_arg, steps
from vitscale.core.errors import UserError


def example() -> ConfigDict:
  return ConfigDict(
    {
      "seed": 0,
      "total_epochs": 20.0,
      "model": {"variant": "mu/4", "width": 64, "dropout": 0.0, "remat": None},
      "optim": {"lr": 1e-3, "betas": (0.9, 0.99), "schedule": {"kind": "x"}},
      "debug": False,
      "log": {"every_steps": 10},
    }
  )


# ------------------------------------------------------------- parse_arg


def test_arguments_are_typed_by_their_defaults():
  arg = parse_arg(
    "patch=2,lr=1,name=16,fast,path=a=b",
    patch=4, lr=0.1, name="x", fast=False, slow=False, path="",
  )  # fmt: skip
  assert arg.to_dict() == {
    "patch": 2, "lr": 1.0, "name": "16", "fast": True, "slow": False,
    "path": "a=b",
  }  # fmt: skip
  assert type(arg.lr) is float
  assert parse_arg(None, patch=4).patch == parse_arg("", patch=4).patch == 4
  assert parse_arg("fast=False", fast=True).fast is False


@pytest.mark.parametrize(
  ("arg", "message"),
  [
    ("ptch=2", "unknown config argument 'ptch', did you mean 'patch'?"),
    ("patch", "'patch' needs a value: patch=..."),
    ("patch=2.5", "patch=2.5 is float, should be int like 4"),
    ("patch=two", "patch=two is str, should be int"),
    ("patch=True", "is bool, should be int"),
    ("patch=None", "patch=None should be int like 4"),
    ("patch=", "is str, should be int"),
    ("fast=1", "fast=1 is int, should be bool"),
    ("lr=fast", "lr=fast is str, should be float"),
    ("patch=2,patch=4", "'patch' is given twice"),
  ],
)
def test_arguments_are_strict(arg, message):
  with pytest.raises(UserError) as error:
    parse_arg(arg, patch=4, lr=0.1, fast=False)
  assert message in str(error.value)


# -------------------------------------------------------------- override


@pytest.mark.parametrize(
  ("item", "key", "value"),
  [
    ("seed=3", "seed", 3),
    ("model.width=32", "model.width", 32),
    ("optim.lr=3e-3", "optim.lr", 3e-3),
    ("optim.lr=1", "optim.lr", 1.0),
    ("model.variant=8", "model.variant", "8"),
    ("model.remat=full", "model.remat", "full"),
    ("model.remat=None", "model.remat", None),
    ("model.variant=None", "model.variant", None),  # was a string
    ("optim.betas=[0.9, 0.95]", "optim.betas", (0.9, 0.95)),
    ("optim.schedule.kind=a=b", "optim.schedule.kind", "a=b"),
    ("debug=True", "debug", True),
    ("debug=true", "debug", True),
  ],
)
def test_overrides_are_typed_by_what_they_replace(item, key, value):
  config = example()
  override(config, [item])
  found = config.get_ref(key) if "." not in key else config
  for name in key.split("."):
    found = found[name] if isinstance(found, ConfigDict) else found.get()
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  ("item", "message"),
  [
    ("seed", "override 'seed' is not key=value"),
    ("seeed=1", "unknown config key 'seeed', did you mean 'seed'?"),
    ("model.widht=1", "'model.widht', did you mean 'model.width'?"),
    ("modle.width=1", "'modle.width', did you mean 'model.width'?"),
    ("width=1", "'width', did you mean 'model.width'?"),
    ("init.form=out", "'init.form', did you mean 'init.from'?"),
    ("init.rewire=mlp", "is str, should be tuple"),
    ("seed.x=1", "unknown config key 'seed.x'"),
    ("seed.x.y=1", "unknown config key 'seed.x.y'"),
    ("=1", "unknown config key ''"),
    ("model=1", "config key 'model' is a group"),
    ("model.width=wide", "model.width=wide is str, should be int like 64"),
    ("model.width=1.5", "model.width=1.5 is float, should be int"),
    ("model.width=None", "model.width=None should be int like 64"),
    ("optim.betas=0.9", "is float, should be tuple"),
    ("optim.lr={[]: 1}", "is str, should be float"),
    ("debug=1", "debug=1 is int, should be bool"),
  ],
)
def test_overrides_are_strict(item, message):
  config = example()
  with pytest.raises(UserError) as error:
    override(config, [item])
  assert message in str(error.value) and "\n" not in str(error.value)
  assert config == example()


def test_override_may_change_the_unit_of_a_duration():
  config = example()
  override(config, ["total_steps=10", "log.every_percent=5"])
  assert config.total_steps == 10 and "total_epochs" not in config
  assert config.log.to_dict() == {"every_percent": 5.0}
  with pytest.raises(UserError, match=r"total_steps=1.5 is float"):
    override(config, ["total_steps=1.5"])
  with pytest.raises(UserError, match=r"config key 'log.total_steps'"):
    override(config, ["log.total_steps=1"])


# ------------------------------------------------------------ find, load


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working directory with configs/mine.py and a study."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "mine.py").write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(arg=None):\n"
    "  return ConfigDict({'seed': 0, 'arg': str(arg)})\n"
  )
  (tmp_path / "experiments" / "inner").mkdir(parents=True)
  (tmp_path / "experiments" / "inner" / "study.py").write_text("")
  return tmp_path


def test_find_by_name_path_and_package(folder):
  find = config_lib.find
  assert find("mine", "configs").name == "mine.py"
  assert find("configs/mine.py", "configs").is_file()
  assert find(str(folder / "configs" / "mine.py"), "configs").is_file()
  assert find("vit_fashion", "configs").is_file()  # travels with the package
  study = ("experiments", "{}/study.py")
  assert find("inner", *study).parent.name == "inner"
  assert find("experiments/inner", *study).name == "study.py"


def test_find_offers_the_nearest_name(folder):
  with pytest.raises(UserError, match=r"no config 'miine', .* 'mine'\?"):
    config_lib.find("miine", "configs")
  with pytest.raises(UserError, match=r"'vit_fashio', .*'vit_fashion'\?"):
    config_lib.find("vit_fashio", "configs")
  with pytest.raises(UserError, match=r"no experiment 'iner', .*'inner'\?"):
    config_lib.find("iner", "experiments", "{}/study.py")


def test_load_applies_and_locks(folder):
  config = config_lib.load("mine:a=1,b", ["seed=5"])
  assert config.seed == 5 and config.arg == "a=1,b"
  with pytest.raises((KeyError, AttributeError), match="sed"):
    config.sed = 1
  assert config_lib.load("mine").arg == "None"


def test_load_says_what_a_file_lacks(folder):
  empty = folder / "empty.py"
  empty.write_text("")
  with pytest.raises(UserError, match="no get_config"):
    config_lib.load(str(empty))
  empty.write_text("def get_config(arg=None): return {'a': 1}")
  with pytest.raises(UserError, match="returned dict, should be"):
    config_lib.load(str(empty))
  text = folder / "notes.txt"
  text.write_text("seed = 1")
  with pytest.raises(UserError, match=r"notes.txt is not a Python file"):
    config_lib.load(str(text))


# ---------------------------------------------------------------- Reader


def test_unread_keys_at_any_depth():
  read = Reader(example())
  assert set(read.unread()) == {
    "seed", "total_epochs", "model", "optim", "debug", "log",
  }  # fmt: skip
  _ = read["seed"], read["total_epochs"], read["debug"]
  read.group("log").kwargs()
  assert read["model"]["width"] == 64
  _ = read["optim"]["lr"], read["optim"]["betas"]
  assert set(read.unread()) == {
    "model.variant", "model.dropout", "model.remat", "optim.schedule",
  }  # fmt: skip
  _ = read["optim"]["schedule"]["kind"]
  assert read["model"].kwargs("width") == {
    "variant": "mu/4", "dropout": 0.0, "remat": None,
  }  # fmt: skip
  read.assert_all_read()


def test_unread_error_names_all_and_the_nearest():
  config = example()
  config.model.widht, config.model.depht = 1, 2
  read = Reader(config)
  for key in ("seed", "total_epochs", "debug"):
    _ = read[key]
  read.group("log").kwargs(), read.group("optim").kwargs()
  for key in ("variant", "width", "dropout", "remat"):
    _ = read["model"][key]
  with pytest.raises(UserError) as error:
    read.assert_all_read()
  text = str(error.value)
  assert "'model.depht' is read by nobody" in text
  assert "also unread: model.widht" in text
  del config.model["depht"]
  read = Reader(config)
  read.kwargs("model"), [read["model"][k] for k in example().model]
  with pytest.raises(UserError, match=r"'model.widht'.*'model.width'\?"):
    read.assert_all_read()


def test_asking_for_a_key_is_not_reading_it():
  read = Reader({"a": 1, "b": {"c": 2}})
  assert "a" in read and list(read) == ["a", "b"] and len(read) == 2
  assert read.unread() == ["a", "b"]
  assert read.get("zero", 7) == 7
  assert not read.group("none").unread()
  with pytest.raises(UserError, match=r"no key 'b.d'"):
    _ = read["b"]["d"]
  assert read.unread() == ["a", "b.c"]


# ------------------------------------------------------------- durations


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("total_steps", 7, 7),
    ("total_examples", 1000, 62),  # 62.5 rounds to even
    ("total_epochs", 2.0, 125),
    ("total_epochs", 1e-9, 1),  # asked for something: at least one step
    ("total_percent", 10.0, 20),
    ("total_flops", 3.2e9, 200),
    ("total_steps", 0, 0),
  ],
)
def test_durations(key, value, expected):
  made = steps(
    {key: value}, "total", batch_size=16, epoch_examples=1000,
    total_steps=200, flops_per_example=1e6,
  )  # fmt: skip
  assert made == expected and type(made) is int


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({}, "no duration total_*: set one of total_steps, total_epochs"),
    ({"total_steps": 1, "total_epochs": 1}, "are both set: keep one"),
    ({"total_steps": -1}, "total_steps=-1 is not a duration"),
    ({"total_steps": "many"}, "total_steps='many' is not a duration"),
    ({"total_steps": True}, "total_steps=True is not a duration"),
    ({"total_epochs": float("nan")}, "total_epochs=nan is not a duration"),
    ({"total_epochs": float("inf")}, "total_epochs=inf is not a duration"),
    ({"total_epochs": 1}, "total_epochs can't be used here"),
    ({"total_percent": 1}, "total_percent can't be used here"),
    ({"total_flops": 1}, "total_flops can't be used here"),
  ],
)
def test_bad_durations(config, message):
  with pytest.raises(UserError) as error:
    steps(config, "total", batch_size=16)
  assert message in str(error.value)


def test_default_duration():
  assert steps({}, "every", batch_size=16, default=9) == 9
  assert steps({"every_steps": 2}, "every", batch_size=16, default=9) == 2


# -------------------------------------------------------------- identity


def test_digest_sees_physics_only():
  base = config_lib.digest(example())
  assert len(base) == 16
  for where in config_lib.NOT_PHYSICS:
    changed, (group, _, leaf) = example(), where.partition(".")
    changed[group] = ConfigDict({leaf or "any": 1})
    same = (
      base
      if not leaf
      else config_lib.digest({**example().to_dict(), group: {}})
    )
    assert config_lib.digest(changed) == same, where
  for item in ("seed=1", "optim.lr=2e-3", "model.remat=full", "debug=True"):
    changed = example()
    override(changed, [item])
    assert config_lib.digest(changed) != base, item


def test_digest_does_not_depend_on_order_or_container():
  base = config_lib.digest(example())
  plain = example().to_dict()
  backwards = dict(reversed(list(plain.items())))
  assert config_lib.digest(plain) == config_lib.digest(backwards) == base
  assert config_lib.digest(config_lib.to_dict(example())) == base
  assert config_lib.digest(example().lock()) == base


def test_digest_may_leave_keys_out():
  other = example()
  override(other, ["seed=1", "optim.lr=5e-3"])
  without = ("seed", "optim.lr", "no.such.key", "debug.deeper")
  left = config_lib.digest(example(), without=without)
  assert left == config_lib.digest(other, without=without)
  assert left != config_lib.digest(example())


def test_digest_changes_with_the_package(monkeypatch):
  base = config_lib.digest(example())
  monkeypatch.setattr("vitscale.__version__", "99.0")
  assert config_lib.digest(example()) != base


def test_difference_lists_changed_added_and_removed():
  new = example()
  override(new, ["optim.lr=0.1", "total_steps=5", "optim.betas=(0.9, 0.5)"])
  new.model.extra = None
  assert config_lib.difference(example(), new) == [
    "model.extra: (none) -> None",
    "optim.betas: [0.9, 0.99] -> [0.9, 0.5]",
    "optim.lr: 0.001 -> 0.1",
    "total_epochs: 20.0 -> (none)",
    "total_steps: (none) -> 5",
  ]
  assert config_lib.difference(example(), example()) == []


def test_keys_that_a_config_leaves_out():
  cfg = ConfigDict({"optim": {"lr": 1e-3}, "model": {"width": 8}})
  override(
    cfg,
    ["ema=0.9", "mesh.fsdp=4", "model.drop_path=0.1", "optim.b1=0.8"]
    + ["draws.patch_size.values=(2,4)", "pack.length=64"],
  )
  assert cfg.to_dict() == {
    "optim": {"lr": 1e-3, "b1": 0.8},
    "model": {"width": 8, "drop_path": 0.1},
    "ema": 0.9,
    "mesh": {"fsdp": 4},
    "draws": {"patch_size": {"values": (2, 4)}},
    "pack": {"length": 64},
  }
  for bad in ("optim.lrr=1", "model.widht=9", "emma=0.9", "mesh.fdsp=4"):
    with pytest.raises(UserError, match="unknown config key"):
      override(cfg, [bad])
  with pytest.raises(UserError, match="should be float"):
    override(ConfigDict(), ["ema=yes"])
