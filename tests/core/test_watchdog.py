"""core/watchdog: real processes that get stuck, or don't."""

import pytest

from tests.runs import python
from vitscale.core.errors import UserError
from vitscale.core.watchdog import STUCK, Watchdog

RUN = """
import sys, time
from vitscale.core.watchdog import Watchdog

with Watchdog({"seconds": 0.5, "slow_seconds": 60}) as watchdog:
  for _ in range(20):  # twice as long as the limit
    watchdog.beat("step")
    time.sleep(0.05)
  watchdog.beat("evaluation", slow=True)
  time.sleep(1)
  if sys.argv[1] == "stuck":
    watchdog.beat("step")
    time.sleep(60)
time.sleep(1)
print("through")
"""


def test_no_step_for_too_long_ends_the_process():
  process = python("-c", RUN, "stuck")
  assert process.returncode == STUCK == 75, process.stderr
  assert process.stdout == ""
  last = process.stderr.splitlines()[-1]
  assert "stuck: nothing finished for" in last and "in 'step'" in last
  assert "watchdog.seconds = 0.5" in last
  assert "time.sleep" in RUN and 'File "<string>", line 13' in process.stderr


def test_a_run_that_moves_is_left_alone():
  process = python("-c", RUN, "moves")
  assert process.returncode == 0 and process.stdout == "through\n"


def test_off_with_one_process():
  assert Watchdog().limits == {"seconds": 0.0, "slow_seconds": 0.0}
  assert Watchdog({"seconds": 5}).limits["seconds"] == 5.0
  with pytest.raises(UserError, match=r"watchdog.seconds = -1"):
    Watchdog({"seconds": -1})
