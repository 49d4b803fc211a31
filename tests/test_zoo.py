"""The zoo's rows and ZOO.md."""

import json
import subprocess
import sys

import pytest

from tests.contract import test_families
from vitscale import zoo
from vitscale.core.errors import UserError


@pytest.fixture(scope="module")
def rows():
  return zoo.rows()


def test_rows(rows):
  assert all(tuple(row) == zoo.COLUMNS for row in rows)
  vit = {r["variant"]: r for r in rows if r["family"] == "vit"}
  # As in timm: vit_*_patch16_224, vit_so400m_patch14_siglip_224.
  assert vit["Ti/16"]["params"] == 5_717_416
  assert vit["S/16"]["params"] == 22_050_664
  assert vit["B/16"]["params"] == 86_567_656
  assert vit["L/16"]["params"] == 304_326_632
  assert vit["So400m/14"]["params"] == 427_680_704
  assert vit["B/16"]["gmacs_per_image"] == pytest.approx(17.56, abs=0.01)
  assert vit["mu/4"]["resolution"] == 28
  assert vit["B/16"]["resolution"] == 224
  json.dumps(rows)


def test_one_family(rows, monkeypatch):
  toys = zoo.presented(zoo.family("vit"))[:1]
  monkeypatch.setattr(zoo, "presented", lambda module: toys)
  monkeypatch.setattr(zoo, "names", lambda: ["other", "vit"])
  toy = [r for r in rows if (r["family"], r["variant"]) == ("vit", "mu/4")]
  assert zoo.rows("vit") == toy


def test_macs_of_a_family_without_a_formula(monkeypatch):
  shown = zoo.presented(zoo.family("vit"))[0]
  want = zoo.params_and_macs(shown)
  monkeypatch.delattr(shown.module, "flops_per_image")
  assert zoo.params_and_macs(shown) == want


def test_unknown_family():
  with pytest.raises(UserError, match="model family 'vti', did you mean 'vit'"):
    zoo.rows("vti")


def test_contract_is_null_until_the_tests_have_run(monkeypatch, tmp_path):
  monkeypatch.setattr(zoo, "CONTRACT", tmp_path / "none.json")
  assert zoo.verdict(zoo.contract(), "vit") is None
  seen = {
    "families": {
      "vit": {
        "a": {"result": "passed"},
        "b": {"result": "failed"},
        "c": {"result": "absent"},
      }
    }
  }
  assert zoo.verdict(seen, "vit") == "1/2 passed"


def test_contract_json_is_of_these_families_and_checks():
  tests = [n for n in vars(test_families) if n.startswith("test_")]
  checks = {n.removeprefix("test_").replace("_", " ") for n in tests}
  seen = zoo.contract()
  remedy = "run `make zoo`"
  assert set(seen["checks"]) == checks, remedy
  assert set(seen["families"]) == set(zoo.names()), remedy
  for family, results in seen["families"].items():
    assert set(results) == checks, (family, remedy)


def test_zoo_md_is_current(rows, monkeypatch):
  monkeypatch.setattr(zoo, "rows", lambda: rows)
  text = (zoo.ROOT / "ZOO.md").read_text()
  assert text == zoo.markdown(), "run `make zoo`"


def test_command():
  run = subprocess.run(
    [sys.executable, "-m", "vitscale.cli", "models", "--json"],
    cwd=zoo.ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  models = json.loads(run.stdout)["models"]
  assert {"vit"} <= {row["family"] for row in models}
