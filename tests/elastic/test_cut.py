"""`vitscale cut`: a standalone workdir that nothing elastic has to read."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

import vitscale as vs
from tests import toys
from tests.runs import complaint, contents, python, state_of
from tests.tasks.test_nested import config
from vitscale import cli, doctor
from vitscale.cli import cut as cli_cut
from vitscale.core import axes
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, read_rows
from vitscale.elastic import apart, router, score
from vitscale.elastic import space as space_lib
from vitscale.elastic.cut import cut, open_run, within
from vitscale.elastic.cut import nested as nest_of
from vitscale.elastic.slice import nest
from vitscale.elastic.space import Space
from vitscale.interop import exporter, safetensors, timm
from vitscale.train import train


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
  """A run that nests the FFN at four levels, three layers deep."""
  workdir = tmp_path_factory.mktemp("nested") / "run"
  train(config(model__depth=3, total_steps=6), workdir)
  return workdir


def run(capfd, *args):
  code = cli.main(["cut", *map(str, args)])
  out, err = capfd.readouterr()
  return code, out, err


def test_a_cut_model_stands_alone(nested, tmp_path, capfd):
  before = contents(nested)
  out = tmp_path / "small"
  code, text, _ = run(
    capfd, nested, "--spec", "ffn=1/4x2,1", "--out", out, "--json"
  )
  assert code == 0
  result = json.loads(text)
  assert set(result) == {
    "spec", "by", "params", "gmacs_per_image", "budget", "metrics", "out",
  }  # fmt: skip
  assert result["spec"] == "ffn=1/4x2,1" and result["budget"] is None
  assert result["out"] == str(out)
  assert contents(nested) == before
  # The weights are the corner of the big ones, the averaged ones that is.
  model, variables = vs.load(out)
  assert model.mlp_dim == (8, 8, 32) and model.depth == 3
  big, whole = vs.load(nested)
  image = np.zeros((1, 8, 8, 1), np.float32)
  boxed = lambda m: jax.eval_shape(m.init, jax.random.key(0), image)
  want = nest(whole, axes.names_of(boxed(big)), axes.unbox(boxed(model)))
  jax.tree.map(np.testing.assert_array_equal, variables, want)
  assert result["params"] == sum(
    x.size for x in jax.tree.leaves(variables["params"])
  )
  # Metrics: those of the nested run's own evaluation; the cut's, stored.
  row = read_rows(nested / "metrics.jsonl")[-1]
  full, small = result["metrics"]["full"], result["metrics"]["cut"]
  assert full["val/nll"] == pytest.approx(row["eval/val/nll"], rel=1e-6)
  assert small["val/nll"] != full["val/nll"]
  assert set(full) == set(small)
  (mine,) = read_rows(out / "metrics.jsonl")
  assert mine["eval/val/nll"] == small["val/nll"]


@pytest.mark.slow
def test_every_reader_takes_it(nested, tmp_path, capfd):
  out = tmp_path / "small"
  result = cut(nested, out, spec="ffn=1/4")
  config_of = read_json(out / "run.json")["config"]
  assert config_of["task"] == {"name": "classify"}
  assert config_of["model"]["mlp_dim"] == 8
  # The nested run evaluated this granularity while it trained.
  row = read_rows(nested / "metrics.jsonl")[-1]
  assert result["metrics"]["cut"]["val/nll"] == pytest.approx(
    row["eval/val/ffn=1/4/nll"], rel=1e-5
  )
  assert [r["status"] for r in doctor.examine(out)["steps"]] == ["verified"]
  (listed,) = vs.runs(out)
  assert listed["status"] == "finished" and listed["step"] == 6
  parent = read_json(nested / "run.json")
  assert listed["flops"] == parent["law_variables"]["flops"]
  # The same config is a finished run: nothing to train.
  before = contents(out)
  assert train(config_of, out)["status"] == "finished"
  assert contents(out) == before
  # And again: a part of a part is no nested run any more.
  code, _, err = run(
    capfd, out, "--spec", "ffn=1/2", "--out", tmp_path / "smaller"
  )
  assert code == 2 and "was not trained nested" in complaint(err)
  assert not (tmp_path / "smaller").exists()


@pytest.mark.slow
def test_the_whole_state_is_cut(nested, tmp_path):
  cut(nested, tmp_path / "half", spec="ffn=1/2")
  big, small = state_of(nested), state_of(tmp_path / "half")
  assert big.keys() == small.keys()
  for name, x in small.items():
    corner = big[name][tuple(slice(n) for n in x.shape)]
    if not name.startswith("window"):
      np.testing.assert_array_equal(x, corner, err_msg=name)
  moments = [k for k in small if k.startswith("opt/") and "mlp/up" in k]
  assert moments and all(small[k].shape != big[k].shape for k in moments)


@pytest.mark.slow
def test_no_elastic_code_to_run_it(nested, tmp_path):
  cut(nested, tmp_path / "half", spec="ffn=1/2x2,1")
  code = (
    "import sys, vitscale as vs; vs.load(sys.argv[1]);"
    "print([m for m in sys.modules if 'vitscale.elastic' in m])"
  )
  done = python("-c", code, tmp_path / "half", JAX_PLATFORMS="cpu")
  assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_a_taught_run_is_cut_without_its_teacher(tmp_path):
  plain = toys.config(total_steps=2, evals={})
  train(plain, tmp_path / "teacher")
  made = toys.config(total_steps=2)
  made.init = {"from": str(tmp_path / "teacher")}
  made.task = {
    "name": "nested", "granularities": ("ffn=1/2", "full"),
    "of": {
      "name": "distil", "of": {"name": "classify"},
      "teacher": str(tmp_path / "teacher"),
    },
  }  # fmt: skip
  made.evals.val.name = "nested"
  train(made, tmp_path / "run")
  out = tmp_path / "small"
  result = cut(tmp_path / "run", out, budget="macs:0.9", how="exhaustive")
  assert result["budget"]["scored"] > 0
  shutil.rmtree(tmp_path / "teacher")
  model, variables = vs.load(out)
  assert list(variables) == ["params"] and model.mlp_dim != 32
  config_of = read_json(out / "run.json")["config"]
  assert config_of["task"] == {"name": "classify"} and "init" not in config_of


def test_a_budget(nested, tmp_path):
  result = cut(nested, tmp_path / "b", budget="macs:0.8")
  spent = result["budget"]
  assert spent["kind"] == "macs" and 0.7 < spent["share"] <= 0.8
  assert spent["used"] <= spent["limit"]
  assert result["gmacs_per_image"] == spent["used"] / 1e9
  by_size = cut(nested, tmp_path / "p", budget="params:0.8")
  assert by_size["params"] == by_size["budget"]["used"]


# ------------------------------------------------------------------ selection


@pytest.fixture(scope="module")
def tested(nested):
  """The nested run, opened, as if it evaluated the test split alone."""
  big = open_run(nested, nested=True)
  evals = {"final": {"split": "test", "batch_size": 24}}
  run = {**big.run, "config": {**big.run["config"], "evals": evals}}
  return dataclasses.replace(big, run=run)


def test_selection_sees_val_and_says_so(tested, capfd):
  _, spent = within(tested, "0.8", "exhaustive")
  assert spent["selected_on"] == {
    "source": "strokes", "split": "val", "images": 64, "evals": [],
  }  # fmt: skip
  assert spent["scored"] > 1 and spent["share"] <= 0.8
  # A rule looks at nothing.
  _, ruled = within(tested, "0.8", "least_slope")
  assert ruled["selected_on"] is None and ruled["scored"] == 0
  assert capfd.readouterr().err == ""
  # Asked for the test split: done, and said.
  _, spent = within(tested, "0.8", "sensitivity", score_on="final")
  assert spent["selected_on"]["split"] == "test"
  assert spent["selected_on"]["evals"] == ["final"]
  said = capfd.readouterr().err
  assert "warning: selecting on the test split" in said


@pytest.mark.slow
def test_exhaustive_is_the_best_on_what_it_looks_at(tested):
  price = lambda little: space_lib.cost("macs", little, tested.image)
  space = Space(tested.bench.model, tested.bench.task.granularities, price)
  seen = apart.images(tested.run["config"])
  judge = score.judge(nest_of(tested), space, seen.batches)
  loss = {}
  for how in ("exhaustive", "increasing", "sensitivity", "evolutionary"):
    spec, spent = within(tested, "0.75", how)
    assert spent["share"] <= 0.75 and spent["scored"] > 1
    (loss[how],) = judge([space.mix(spec)])
  assert min(loss.values()) == loss["exhaustive"]


def test_a_router_is_trained_and_reported(tested, monkeypatch):
  monkeypatch.setattr(router, "STEPS", 2)
  spec, spent = within(tested, "0.8", "router", seed=3)
  assert spent["steps"] == 2 and spent["scored"] == 0
  assert spent["share"] <= 0.8 and spent["selected_on"]["images"] == 64
  assert spec.touched() <= {"ffn"}


def by_macs(models, *, image, batch):
  """A stopwatch of a machine whose time goes with the work."""
  return [
    batch * (1 + space_lib.cost("macs", model, image) / 1e4) for model in models
  ]


def test_a_budget_of_measured_time(tested):
  timed = {"measure": by_macs, "batch": 4}
  spec, spent = within(tested, "latency:0.8", "least_slope", **timed)
  assert spent["kind"] == "latency" and spent["share"] <= 0.8
  assert spent["batch"] == 4 and spent["dtype"] == "float32"
  assert spent["platform"] == "cpu" and spent["device"]
  assert spent["measured"] == pytest.approx(spent["used"])  # it adds up here
  assert spent["whole"] == pytest.approx(spent["limit"] / 0.8)
  same, _ = within(
    tested, f"latency:{spent['limit']}ms", "least_slope", **timed
  )
  assert same == spec
  with pytest.raises(UserError, match=r"below the smallest .* largest \d"):
    within(tested, "latency:1us", "least_slope", **timed)


def test_a_table_that_does_not_add_up_is_said_aloud(tested, capfd):
  def uneven(models, *, image, batch):
    """Layers of unequal size cost extra."""
    extra = [1 + isinstance(model.mlp_dim, tuple) for model in models]
    found = by_macs(models, image=image, batch=batch)
    return [time * more for time, more in zip(found, extra)]

  _, spent = within(tested, "latency:0.95", "least_slope", measure=uneven)
  assert spent["measured"] > 1.5 * spent["used"]
  said = capfd.readouterr().err
  assert said.count("\n") == 1 and "do not add up over layers" in said


def test_time_is_measured_on_this_device(nested, tmp_path, capfd):
  code, _, err = run(
    capfd, nested, "--budget", "latency:60s", "--latency-batch", "1",
    "--out", tmp_path / "x",
  )  # fmt: skip
  assert code == 2  # no toy takes a minute, where its time says anything
  assert "above the largest" in complaint(err) or "machine is busy" in err
  assert "ms" in err and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_choice_by_scores_on_the_command_line(nested, tmp_path, capfd):
  out = tmp_path / "x"
  code, text, err = run(
    capfd, nested, "--budget", "macs:0.75", "--select", "sensitivity",
    "--out", out,
  )  # fmt: skip
  assert code == 0 and "flatter the chosen model" in err  # it reports val alone
  assert "sensitivity scored 10 models on 64 images of strokes val" in text
  assert "cut (selected on these images)" in text
  model, _ = vs.load(out)
  assert model.depth == 3


def test_text_of_a_measured_choice():
  spent = {
    "kind": "latency", "limit": 5.0, "used": 4.5, "share": 0.9, "batch": 8,
    "device": "cpu", "dtype": "float32", "measured": 4.75, "whole": 5.25,
    "selected_on": None,
  }  # fmt: skip
  said = cli_cut.text(
    {
      "spec": "ffn=1/2", "params": 7, "gmacs_per_image": 1.0, "by": "prefix",
      "budget": spent, "out": "there", "metrics": {"full": {}, "cut": {}},
    }
  )  # fmt: skip
  assert "8 images on cpu, float32: 4.5 by the table, 4.75 measured" in said


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("plain") / "run"
  train(toys.config(total_steps=40, optim__lr=3e-3, ema=0.0), workdir)
  return workdir


def test_a_plain_run_is_cut_by_importance_only(plain, tmp_path, capfd):
  spec = ["--spec", "ffn=1/4 heads=1/2", "--out"]
  code, _, err = run(capfd, plain, *spec, tmp_path / "x")
  assert code == 2 and "was not trained nested" in complaint(err)
  code, out, _ = run(capfd, plain, *spec, tmp_path / "y", "--by", "importance")
  assert code == 0 and "cut by importance: this model was never" in out
  said = read_json(tmp_path / "y" / "run.json")["cut"]
  assert said["by"] == "importance"
  model, _ = vs.load(tmp_path / "y")
  assert (model.mlp_dim, model.num_heads) == (8, 1)
  code, _, err = run(
    capfd, plain, "--spec", "embed=1/2", "--out", tmp_path / "z",
    "--by", "importance",
  )  # fmt: skip
  assert code == 2 and "orders ffn and heads, not embed" in complaint(err)
  whole = cut(plain, tmp_path / "w", spec="full", by="importance")
  assert whole["metrics"]["cut"] == whole["metrics"]["full"]
  assert not (tmp_path / "x").exists() and not (tmp_path / "z").exists()


def test_export(nested, tmp_path):
  """What is written computes what the cut model does, by timm's names."""
  cut(nested, tmp_path / "small", spec="ffn=1/4")
  model, variables = vs.load(tmp_path / "small")
  out = tmp_path / "out"
  exporter.export(tmp_path / "small", out, "timm")
  state = safetensors.read(out / "model.safetensors")
  options = read_json(out / "config.json")["model_args"]
  assert options["img_size"] == [8, 8] and options["in_chans"] == 1
  assert int(options["mlp_ratio"] * options["embed_dim"]) == 8
  back, v = timm.load(
    state, num_heads=options["num_heads"], gelu=model.gelu, norm_pooled=False
  )
  image = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("f4")
  run = lambda m, v: jax.jit(m.apply)(v, image)[0]
  np.testing.assert_allclose(run(back, v), run(model, variables), atol=1e-6)


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
  ("args", "says"),
  [
    (["--spec", "ffn=1/3"], "not whole: nearest 5/16 (10) or 11/32 (11)"),
    (["--spec", "ffn=1/2x4"], "deeper than the model"),
    (["--spec", "heads=1/2"], "cuts heads, the run nests ffn only"),
    (["--spec", "fnn=1/2"], "did you mean 'ffn'"),
    (["--budget", "0.01"], "below the smallest"),
    (["--budget", "macs:1e12"], "above the largest"),
    (["--budget", "0.8", "--select", "exhaust"], "did you mean 'exhaustive'"),
    (
      ["--budget", "0.8", "--select", "exhaustive", "--score-on", "vall"],
      "no evals.vall to score on, did you mean 'val'",
    ),
    (["--budget", "latency:5"], "a time has a unit, latency:5ms"),
    (["--budget", "latencies:5ms"], "did you mean 'latency'"),
    (
      ["--budget", "latency:.5", "--latency-batch", "0"],
      "latency batch 0: should be 1 or more",
    ),
    (["--spec", "ffn=1/2", "--by", "importanc"], "did you mean 'importance'"),
    (["--budget", "0.8", "--by", "importance"], "give a spec"),
    (["--budget", "0.8", "--spec", "full"], "not allowed with argument"),
    ([], "one of the arguments --spec --budget is required"),
  ],
)
def test_bad_input_is_one_line_and_writes_nothing(
  nested, tmp_path, capfd, args, says
):
  out = tmp_path / "out"
  try:
    code, _, err = run(capfd, nested, *args, "--out", out)
  except SystemExit as end:  # argparse
    code, err = end.code, capfd.readouterr().err
  assert code == 2 and says in err
  assert len(err.strip().splitlines()) == 1
  assert not out.exists()


def test_places_that_do_not_do(nested, tmp_path, capfd):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "mine").touch()
  spec = ["--spec", "ffn=1/2", "--out"]
  code, _, err = run(capfd, nested, *spec, tmp_path / "full")
  assert code == 2 and "is not an empty folder" in complaint(err)
  code, _, err = run(capfd, tmp_path, *spec, tmp_path / "x")
  assert code == 2 and "is not a run" in complaint(err)
  assert not (tmp_path / "x").exists()
