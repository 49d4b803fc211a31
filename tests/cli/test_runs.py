"""`vitscale runs`: what is kept, in which order, and a page of it."""

import json

import pytest

from vitscale import cli
from vitscale.cli import runs as cli_runs
from vitscale.core.errors import UserError

ROWS = [
  {"name": "a", "status": "finished", "params": 500_000, "eval/val/nll": 0.5},
  {"name": "b-wide", "status": "finished", "params": 2_000_000, "mfu": 0.25},
  {"name": "c", "status": "running", "params": 1_000_000, "eval/val/nll": 9.0},
  {"name": "d", "status": "failed", "params": None, "eval/val/nll": 10},
]


def names(rows):
  return "".join(row["name"][0] for row in rows)


@pytest.mark.parametrize(
  ("where", "kept"),
  [
    (["status=finished"], "ab"),
    (["status == finished"], "ab"),
    (["status!=finished"], "cd"),
    (["params<1e6"], "a"),
    (["params<=1e6"], "ac"),
    (["params=1e6"], "c"),
    (["params!=1e6"], "abd"),
    (["params > 1e6"], "b"),
    (["params>=1000000"], "bc"),
    (["status~fin"], "ab"),
    (["name~-w", "status=finished"], "b"),
    (["status=finished", "params>1e6"], "b"),
    (["eval/val/nll>2"], "cd"),  # as numbers, not as text
    (["status=none"], ""),
  ],
)
def test_conditions(where, kept):
  assert names(cli_runs.select(ROWS, where)) == kept


@pytest.mark.parametrize(
  ("sort", "order"),
  [
    ("params", "acbd"),
    ("-params", "bcad"),  # without the key: last both ways
    ("eval/val/nll", "acdb"),
    ("-name", "dcba"),
    (None, "abcd"),
  ],
)
def test_order(sort, order):
  assert names(cli_runs.select(ROWS, sort=sort)) == order


@pytest.mark.parametrize(
  ("where", "sort", "says"),
  [
    (["statu=finished"], None, "'statu', did you mean 'status'"),
    (["eval/val/nnl<1"], None, "did you mean 'eval/val/nll'"),
    ([], "-param", "--sort: no run has 'param', did you mean 'params'"),
    (["finished"], None, "is no condition: KEY OP VALUE"),
    (["=finished"], None, "is no condition"),
    (["params<many"], None, "< takes a number, not 'many'"),
    (["status<3"], None, "status is 'finished' in run a, no number"),
  ],
)
def test_bad_conditions(where, sort, says):
  with pytest.raises(UserError) as error:
    cli_runs.select(ROWS, where, sort)
  assert says in str(error.value) and "\n" not in str(error.value)


def test_columns():
  assert cli_runs.named(ROWS, "params, mfu,params") == ["params", "mfu"]
  with pytest.raises(UserError, match="did you mean 'mfu'"):
    cli_runs.named(ROWS, "name,mfv")
  with pytest.raises(UserError, match="empty"):
    cli_runs.named(ROWS, " ,")


# ----------------------------------------------------------------- the command


@pytest.fixture
def lab(tmp_path):
  """Two runs, of which one is finished."""
  for name, status, params in (("x", "finished", 10), ("sub/y", "failed", 30)):
    workdir = tmp_path / "lab" / name
    workdir.mkdir(parents=True)
    facts = {
      "status": status,
      "config": {"optim": {"lr": params / 1000}, "seed": 0},
      "law_variables": {"params": params, "flops": 100},
    }
    (workdir / "run.json").write_text(json.dumps(facts))
    rows = [
      {
        "step": step,
        "examples": 8 * step,
        "flops": 50 * step,
        "train/loss": 1 / step,
        "train/accuracy": 0.5,
      }
      for step in (1, 2)
    ]
    (workdir / "metrics.jsonl").write_text(
      "".join(json.dumps(row) + "\n" for row in rows)
    )
  return tmp_path / "lab"


def test_table_and_json(lab, capfd):
  assert cli.main(["runs", str(lab), "--columns", "name,params"]) == 0
  table = capfd.readouterr().out.splitlines()
  assert table[0].split() == ["name", "params"] and len(table) == 4

  argv = ["runs", str(lab), "--sort=-params", "--json"]
  assert cli.main(argv) == 0
  rows = json.loads(capfd.readouterr().out)["runs"]
  assert [row["name"] for row in rows] == ["sub/y", "x"]
  assert rows[0]["train/loss"] == 0.5 and rows[0]["workdir"]

  assert cli.main([*argv, "--where", "params<20", "--columns", "params"]) == 0
  assert json.loads(capfd.readouterr().out) == {"runs": [{"params": 10}]}

  assert cli.main(["runs", str(lab), "--where", "params>99"]) == 0
  assert "none of the 2 runs" in capfd.readouterr().out


def refused(argv, capfd, says):
  assert cli.main(["runs", *map(str, argv)]) == 2
  said = capfd.readouterr()
  assert says in said.err and len(said.err.strip().splitlines()) == 1
  assert not said.out


def test_bad_input_is_one_line(lab, tmp_path, capfd):
  (tmp_path / "empty").mkdir()
  refused([tmp_path / "empty"], capfd, "no run.json at any depth")
  refused([tmp_path / "absent"], capfd, "no folder")
  refused([lab, "--columns", "nam"], capfd, "did you mean 'name'")
  out = tmp_path / "out"
  none = ["--where", "params>99", "--page", out / "p.html"]
  refused([lab, *none], capfd, "no page written")
  refused([lab, "--page", out / "p.txt"], capfd, "not an .html file")
  (tmp_path / "file").write_text("")
  refused([lab, "--page", tmp_path / "file/p.html"], capfd, "can't write")
  assert not out.exists()

  (lab / "x" / "run.json").write_text("[]")
  refused([lab], capfd, "not one of vitscale's")
  (lab / "x" / "run.json").write_text("{")
  refused([lab], capfd, "is not JSON")


def test_page_replaces_only_its_own(lab, tmp_path, capfd):
  page = tmp_path / "page" / "all.html"
  columns = ["--columns", "name,train/accuracy"]
  argv = [str(lab), "--page", str(page)]
  assert cli.main(["runs", *argv, *columns, "--json"]) == 0
  result = json.loads(capfd.readouterr().out)
  assert result["page"] == str(page)
  report = json.loads((page.parent / "report.json").read_text())
  assert [figure["title"] for figure in report["figures"]] == ["train/accuracy"]
  assert [row["name"] for row in report["runs"]] == ["sub/y", "x"]

  assert cli.main(["runs", *argv, *columns, "--where", "name=x"]) == 0
  assert "1 run of" in page.read_text()
  assert str(page) in capfd.readouterr().out

  # Another page's report.json and figures are beside this one.
  refused([lab, "--page", page.with_name("b.html")], capfd, "not of this page")
  kept = page.read_text()
  for text in ('{"title": "another"}', "[]"):
    (page.parent / "report.json").write_text(text)
    refused(argv, capfd, "choose another folder")
  (page.parent / "report.json").unlink()
  refused(argv, capfd, "choose another folder")
  assert page.read_text() == kept


def test_too_many_runs_for_a_page(lab, tmp_path, capfd, monkeypatch):
  monkeypatch.setattr(cli_runs, "MOST", 1)
  refused([lab, "--page", tmp_path / "p.html"], capfd, "narrow them")
