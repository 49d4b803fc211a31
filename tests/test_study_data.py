"""Studies that read points: what `--data` may be, and how they end."""

import json
from pathlib import Path

import pytest

from vitscale import cli, study
from vitscale.core.errors import UserError
from vitscale.study_data import Data, find

STUDY = """
'''How large are the numbers?'''

from vitscale.core.errors import UserError
from vitscale.report.page import Section, Table
from vitscale.study_data import Data

DATA = Data(("a.txt", "b.txt"), "example.org/points", also=("more.txt",))
SCALES = {"smoke": ""}


def runs(scale, done):
  return []


def analyse(results, scale, data):
  rows = [{"file": k, "n": int(v.read_text())} for k, v in data.items()]
  if rows[0]["n"] < 0:
    raise UserError(f"{data['a.txt']} is negative")
  return {
    "tables": [Table("Numbers", rows)],
    "sections": [Section("All", tables=[Table("Details", rows)])],
    "verdicts": [{"claim": "large", "verdict": "supported",
                  "threshold": "1", "measured": "2"}],
  }
"""


@pytest.fixture
def folder(tmp_path):
  """A study's folder, and its data beside."""
  (tmp_path / "points").mkdir()
  (tmp_path / "numbers").mkdir()
  (tmp_path / "numbers/study.py").write_text(STUDY)
  for name, value in (("a.txt", "1"), ("b.txt", "2"), ("notes.txt", "")):
    (tmp_path / "points" / name).write_text(value)
  return tmp_path


def command(folder, *argv):
  start = ["study", str(folder / "numbers"), "--scale", "smoke"]
  return cli.main([*start, "--out", str(folder / "out"), *argv])


def test_a_study_of_points_from_command_to_page(folder, capfd):
  points = folder / "points"
  assert command(folder, "--data", str(points)) == 0
  printed, progress = capfd.readouterr()
  assert "Numbers" in printed and "supported: large" in printed
  assert "Details" not in printed  # sections are for the page
  assert "finished in" in printed and "runs" not in printed
  assert "worker" not in progress and str(points / "a.txt") in progress
  page = (folder / "out/report.html").read_text()
  assert "Details" in page and "All runs" not in page
  result = json.loads((folder / "out/study.json").read_text())
  assert result["runs"] == [] and result["errors"] == []
  assert result["tables"][0]["rows"][1] == {"file": "b.txt", "n": 2}
  report = json.loads((folder / "out/report.json").read_text())
  digest = result["data"]["a.txt"]["sha256"]
  assert report["data"]["a.txt"]["path"] == str(points / "a.txt")
  assert report["meta"]["a.txt"] == f"sha256 {digest[:16]}"
  assert "vitscale" in report["meta"]["versions"]


def test_files_beside_are_used_and_the_command_repeats(folder):
  (folder / "points/more.txt").write_text("3")
  for _ in range(2):
    assert command(folder, "--data", str(folder / "points")) == 0
  result = json.loads((folder / "out/study.json").read_text())
  assert list(result["data"]) == ["a.txt", "b.txt", "more.txt"]


def test_points_that_are_no_good_are_bad_input(folder, capfd):
  (folder / "points/a.txt").write_text("-1")
  assert command(folder, "--data", str(folder / "points")) == 2
  error = capfd.readouterr().err
  assert error.splitlines()[-1].endswith("a.txt is negative")
  assert "Traceback" not in error


@pytest.mark.parametrize(
  ("argv", "says"),
  [
    ([], "study numbers reads data: --data must be a folder with a.txt and"),
    (["--data", "{}/points/a.txt"], "is a file: --data must be a folder"),
    (["--data", "{}/pionts"], "no file or folder"),
    (["--data", "{}/numbers"], "has no a.txt: "),
  ],
)
def test_bad_paths_are_one_line_before_anything_runs(folder, capfd, argv, says):
  assert command(folder, *(a.format(folder) for a in argv)) == 2
  out, error = capfd.readouterr()
  assert says in error and "example.org/points" in error
  assert len(error.splitlines()) == 1 and not out
  assert not (folder / "out").exists()


def test_a_missing_file_that_is_spelt_otherwise(folder):
  (folder / "points/a.txt").rename(folder / "points/A.txt")
  wanted = Data(("a.txt", "b.txt"), "example.org")
  with pytest.raises(UserError, match=r"has no a.txt, did you mean 'A.txt'"):
    wanted.find(folder / "points")


def test_one_file_may_have_any_name(folder):
  wanted = Data(("only.csv",), "example.org", also=("b.txt", "c.txt"))
  points = folder / "points"
  assert wanted.find(points / "a.txt") == {
    "only.csv": points / "a.txt",
    "b.txt": points / "b.txt",
  }
  with pytest.raises(UserError, match=r"must be the file only.csv"):
    wanted.find(points)


def test_a_study_of_runs_takes_no_data(tmp_path):
  with pytest.raises(UserError, match="patchify takes no --data"):
    study.run_study(
      "patchify", scale="smoke", data=tmp_path, out=tmp_path / "out"
    )
  assert not (tmp_path / "out").exists()
  assert find("patchify", Path, None) == {}
