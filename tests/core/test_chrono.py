import time

import pytest

from vitscale.core.chrono import Chrono
from vitscale.core.progress import clock, summary


def test_windows_count_only_their_own_time():
  chrono = Chrono(total_steps=100, batch_size=10, before=5.0)
  chrono.open(10)
  time.sleep(0.05)
  chrono.waited(0.02)
  row = chrono.close(20)
  assert row["step"] == 20
  assert 0 < row["examples_per_second"] <= 100 / 0.05
  assert 0 < row["data_wait"] <= 0.4
  assert chrono.seconds > 5.0  # earlier sessions count
  assert chrono.eta(20) == pytest.approx(800 / row["examples_per_second"], 0.01)


def test_summary_line():
  row = {"train/loss": 1.5, "eval/val/nll": 0.25, "examples_per_second": 5120.0,
         "mfu": 0.41, "data_wait": 0.2}  # fmt: skip
  assert summary(row, 65) == (
    "loss 1.5000 | val/nll 0.2500 | 5,120 img/s | MFU 41.0% |"
    " waits for data 20% | 1:05 left"
  )
  assert clock(3723) == "1:02:03"
