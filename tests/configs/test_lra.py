"""lra: the published sizes, the 10 % rule, every task on small files."""

import re
from pathlib import Path

import numpy as np
import pytest

from vitscale.bench import build
from vitscale.core import config as config_lib
from vitscale.core.errors import UserError
from vitscale.train import train

PATH = Path(__file__).parents[2] / "configs" / "lra.py"
lra = config_lib.load_module(PATH)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A little of everything that is read from files."""
  root = tmp_path_factory.mktemp("lra")
  rng = np.random.default_rng(0)
  for part in ("train", "test"):
    for name in ("pos", "neg"):
      folder = root / "aclImdb" / part / name
      folder.mkdir(parents=True)
      for i in range(10):
        (folder / f"{i}_7.txt").write_text(f"{name} {i} " * 8)
  for part in ("train", "eval", "test"):
    lines = [f"{i % 2}.0\ta\tb\ttext {i}\tother {i}\n" for i in range(16)]
    (root / f"new_aan_pairs.{part}.tsv").write_text("".join(lines))
  (root / "cifar-10-batches-bin").mkdir()
  for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
    rows = rng.integers(0, 256, (8, 3073)).astype(np.uint8)
    rows[:, 0] = np.arange(8)
    path = root / "cifar-10-batches-bin" / f"{name}.bin"
    path.write_bytes(rows.tobytes())
  return root


def test_sizes_are_those_of_the_header():
  for name, model in lra.MODELS.items():
    row = re.search(rf"^\| {name} \| ([^|]*) \| ([^|]*) \|", lra.__doc__, re.M)
    length, sizes = row[1], row[2]
    assert sizes == (
      f"{model['depth']} x {model['width']}, {model['num_heads']} x"
      f" {model['head_dim']}, {model['mlp_dim']}"
    )
    n = lra.LENGTHS.get(name) or lra.SIDES[name] ** 2
    assert length in (str(n), f"2 x {n}")


@pytest.mark.parametrize(
  ("name", "lr", "at", "then"),
  [
    # constant * linear_warmup * rsqrt_decay of the released configs.
    ("listops", 0.05, 1000, 4000),
    ("text", 0.05, 8000, 16_000),
  ],
)
def test_rates_are_the_published_ones(name, lr, at, then, files):
  from vitscale.core.schedule import schedule

  config = config_lib.load(f"lra:{name},path={files if name == 'text' else ''}")
  factor = schedule(config.optim.schedule.to_dict(), config.total_steps)
  for step in (at // 2, at, then):
    want = lr * min(1, step / at) / max(step, at) ** 0.5
    assert config.optim.lr * factor(step) == pytest.approx(want, rel=5e-3)


def test_the_base_has_the_parameters_one_counts_by_hand():
  """ListOps: 4 layers of 512 with 1024 hidden units, and a class token."""
  d, m = 512, 1024
  layer = 4 * d * d + 4 * d + 2 * d * m + m + d + 4 * d
  want = 18 * 0 + 17 * d + d + 4 * layer + 2 * d + 10 * d + 10
  config = config_lib.load("lra:listops")
  assert lra.parameters(config.model, (1, 2000, 1), 10) == want


@pytest.mark.parametrize(
  "spec",
  [
    "lra:listops,mixer=linear()",
    "lra:pathfinder,mixer=performer(64, seed=1)",
    "lra:pathfinder,mixer=window(8)",
  ],
)
def test_mixers_within_the_rule(spec):
  config = config_lib.load(spec)
  assert config.model.mixer == spec.partition("mixer=")[2]


def test_a_mixer_with_too_many_parameters_is_refused():
  message = (
    r"mixer 'linformer\(64\)' has ([\d,]+) parameters, the base ([\d,]+):"
    r" the arena allows 10 % more, ([\d,]+)$"
  )
  with pytest.raises(UserError, match=message) as error:
    config_lib.load("lra:pathfinder,mixer=linformer(64)")
  text = re.search(message, str(error.value))
  mine, base, most = (int(x.replace(",", "")) for x in text.groups())
  # Two projections (1024, 64) in each of four layers.
  assert mine == base + 4 * 2 * 1024 * 64 and most == int(1.1 * base)


def test_the_rule_holds_for_overrides_too():
  with pytest.raises(UserError, match="the arena allows 10 % more"):
    config_lib.load("lra:runlocal", ["model.mixer=linformer(512)"])
  made = config_lib.load("lra:runlocal", ["model.mixer=linear()"])
  assert made.model.mixer == "linear()"


def test_the_rule_is_ten_percent(monkeypatch):
  model = {"mixer": "linear()"}
  for extra, fits in ((100, True), (101, False)):
    monkeypatch.setattr(
      lra, "parameters",
      lambda m, *_, e=extra: 1000 + e * (m["mixer"] != "softmax"),
    )  # fmt: skip
    if fits:
      lra.check_size(model, (1, 8, 1), 2)
    else:
      with pytest.raises(UserError, match="1,101 parameters, the base 1,000"):
        lra.check_size(model, (1, 8, 1), 2)


@pytest.mark.parametrize(
  "spec",
  [
    "listops", "listops,masked", "listops,mixer=window(8)", "pathfinder",
    "pathfinder,masked", "pathx", "pathx256", "text,path={files}",
    "text,path={files},length=4000,masked", "retrieval,path={files}",
    "image,path={files}", "image,path={files},masked",
  ],
)  # fmt: skip
def test_every_key_is_read(spec, files):
  made = config_lib.load(f"lra:{spec.format(files=files)},runlocal")
  bench = build(made)
  assert bench.total_steps == 4
  image = bench.inputs[1]["image"].shape
  assert image[1] == (2 if "retrieval" in spec else 1) and image[3] == 1


@pytest.mark.slow
def test_retrieval_runs(files, tmp_path):
  config = config_lib.load(f"lra:retrieval,path={files},runlocal,length=32")
  result = train(config, tmp_path / "run")
  assert result["status"] == "finished"
  assert np.isfinite(result["metrics"]["eval/test/nll"])


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("text", "lra:text reads files: lra:text,path=FOLDER"),
    ("task=lists", "lra has no task 'lists', did you mean 'listops'"),
    ("pathfinder,length=5", "lra:pathfinder is of 32 px: drop length="),
    ("retrieval,path=x,masked", "an image holds two sequences"),
    ("listops,mixer=lineer()", "no mixer 'lineer', did you mean 'linear'"),
    ("listops,mixer=linear(),mixer=window(3)", "'mixer' is given twice"),
  ],
)
def test_bad_arguments(spec, message):
  with pytest.raises(UserError, match=message):
    config_lib.load(f"lra:{spec}")
