"""Records what the contract tests saw, for vitscale/zoo.py.

With `--write-zoo` the results go to vitscale/models/contract.json. A check
says with `record_property("saw", text)` what it found beyond "passed".
"""

import json
from collections import defaultdict

import pytest

from vitscale import zoo

_results = pytest.StashKey[dict]()
_KINDS = {"passed": "passed", "failed": "failed", "skipped": "absent"}


def pytest_addoption(parser):
  parser.addoption(
    "--write-zoo", action="store_true", help="write models/contract.json"
  )


def pytest_configure(config):
  if config.getoption("--write-zoo") and config.getoption("numprocesses", 0):
    raise pytest.UsageError("--write-zoo needs all results in one process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  params = getattr(getattr(item, "callspec", None), "params", {})
  if "family" not in params or (report.when != "call" and report.passed):
    return report
  results = item.config.stash.setdefault(_results, {"checks": {}, "all": []})
  check = item.originalname.removeprefix("test_").replace("_", " ")
  results["checks"][check] = " ".join(item.function.__doc__.split())
  note = "; ".join(str(v) for k, v in report.user_properties if k == "saw")
  if report.skipped:
    note = report.longrepr[2].removeprefix("Skipped: ")
  one = {"result": _KINDS[report.outcome], "note": note}
  results["all"].append((params["family"], check, one))
  return report


def pytest_sessionfinish(session):
  if not session.config.getoption("--write-zoo", False):
    return
  results = session.config.stash.get(_results, {"checks": {}, "all": []})
  families = defaultdict(dict)
  for family, check, one in results["all"]:
    # A failure in teardown must not hide behind a passed call, or reverse.
    if families[family].get(check, one)["result"] != "failed":
      families[family][check] = one
  seen = {"checks": results["checks"], "families": dict(families)}
  zoo.CONTRACT.write_text(json.dumps(seen, indent=2) + "\n")
