"""The study of long sequences: its judgement on made-up times, one turn."""

from pathlib import Path

import pytest

from vitscale import study as study_lib
from vitscale.core.config import load_module
from vitscale.race.contest import Case

FOLDER = Path(__file__).parents[2] / "experiments" / "long_sequence"
analysis = load_module(FOLDER / "analysis.py")
SIDES = {196: 14, 784: 28, 3136: 56, 12544: 112}
CASE = Case("", 1, 1, 64, 2, 1, 1)


def seen(memory, seconds, *, device="cpu", batch=1, **case):
  """What a machine would have shown on which these laws of N are exact."""
  found = {}
  for n in SIDES:
    times = {
      arm: {
        "seconds": [batch * seconds[arm](n) * (1 + 0.01 * i) for i in range(4)],
        "about": {
          "memory": batch * of(n), "version": "x", "device": device,
          "flops": 1e9,
        },
      }
      for arm, of in memory.items()
    }  # fmt: skip
    one = Case(str(n), SIDES[n], 1, 64, 2, 1, batch, device=device, **case)
    found[n] = analysis.Seen(one, times, {})
  return found


MEMORY = {
  "reference": lambda n: 4.0 * n * n,
  "chunked": lambda n: 2e3 * n,
  "save_attention": lambda n: 1.2e3 * n,
  "full": lambda n: 1e3 * n,
  "timm": lambda n: 1e3 * n,
}
SECONDS = {
  arm: lambda n, k=k: k * (1e-6 * n + 1e-9 * n * n)
  for arm, k in (
    ("reference", 3), ("chunked", 1), ("save_attention", 1.2), ("full", 1.5),
    ("timm", 1.3),
  )
}  # fmt: skip


def answers(found, missing=()):
  report = analysis.analyse(found, "cpu", list(missing))
  return report, [v.verdict for v in report["verdicts"]]


def test_what_holds_is_supported():
  report, found = answers(seen(MEMORY, SECONDS))
  assert found == ["supported"] * 7  # three, and timm at four lengths
  (row, *_) = report["tables"][1].rows
  assert (
    row["half of the time"] == "1,000" and row["half of the FLOPs"] == "384"
  )


@pytest.mark.parametrize(
  ("change", "at", "answer"),
  [
    ({"chunked": lambda n: 0.1 * n**1.6}, 0, "not supported"),
    ({"reference": lambda n: 4e4 * n}, 0, "inconclusive"),  # no control
    ({"chunked": lambda n: 2e4 * n}, 1, "not supported"),
    ({"save_attention": lambda n: 1.3e3 * n}, 2, "not supported"),
  ],
)
def test_memory_that_does_not(change, at, answer):
  _, found = answers(seen({**MEMORY, **change}, SECONDS))
  assert found[at] == answer


def test_times_that_do_not():
  slower = {**SECONDS, "save_attention": lambda n: 2e-9 * n * n + 1}
  _, found = answers(seen(MEMORY, slower))
  assert found[2] == "not supported"
  _, found = answers(seen(MEMORY, SECONDS, target=1.35))
  assert found[3:] == ["not supported"] * 4


def test_the_arm_that_is_judged_was_picked_on_other_rounds():
  """An arm that only wins in the judged rounds is not taken."""
  made = seen(MEMORY, SECONDS)
  lucky = made[784].times["reference"]["seconds"]
  lucky[2:] = [1e-9, 1e-9]
  verdict = analysis.against_timm(made, [])[1]
  assert "arm chunked" in verdict.measured


def test_without_a_peer():
  without = {k: v for k, v in MEMORY.items() if k != "timm"}
  _, found = answers(seen(without, SECONDS), missing=["torch", "timm"])
  assert found[3:] == ["inconclusive"] * 4


def test_gpus_are_asked_for_mfu():
  made = seen(MEMORY, SECONDS, device="gpu")
  fast = analysis.dataclasses.replace(made[12544].case, batch=2)
  about = {
    "memory": 12e9, "version": "x", "device": "NVIDIA H100", "flops": 304e12,
  }  # fmt: skip
  for each, answer in ((0.6, "supported"), (0.9, "not supported")):
    times = {"auto": {"seconds": [2 * each] * 4, "about": about}}
    made[50176] = analysis.Seen(fast, times, {})
    assert analysis.on_gpus(made).verdict == answer


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study(
    "long_sequence", scale="smoke", out=tmp_path / "out"
  )
  assert result["status"] == "finished"
  assert Path(result["report"]).exists()
