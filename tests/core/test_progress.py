from vitscale.core.progress import Progress, account, clock, summary

ROW = {
  "train/loss": 1.5,
  "eval/val/nll": 0.25,
  "examples_per_second": 5120.0,
  "mfu": 0.41,
  "of_ceiling": 0.57,
  "data_wait": 0.2,
}
FOUND = {
  "share": 0.81,
  "sessions": 2,
  "wall_clock": 3723.0,
  "shares": {"step": 0.81, "down": 0.1, "compile": 0.0901, "data": 0.0001},
}


def test_summary_line():
  assert summary(ROW, 65) == (
    "loss 1.5000 | 5,120 img/s | MFU 41.0% (57% of GEMM) | waits for data 20%"
    " | 1:05 left | val/nll 0.2500"
  )
  assert clock(3723) == "1:02:03"


def test_without_a_published_peak_the_ceiling_is_named():
  row = {**ROW, "mfu": None, "data_wait": 0.0}
  assert summary(row, None, 0.81) == (
    "loss 1.5000 | 5,120 img/s | 57% of GEMM ceiling | goodput 81%"
    " | val/nll 0.2500"
  )
  row["of_ceiling"] = None
  assert "GEMM" not in summary(row, None)


def test_account_of_a_run(capsys):
  line = "goodput 81% of 1:02:03 in 2 sessions (down 10%, compile 9%)"
  assert account(FOUND) == line
  assert " in 2 sessions" not in account({**FOUND, "sessions": 1})
  Progress().ended({"goodput": FOUND})
  Progress().ended({"goodput": None})  # a run of an older version
  assert capsys.readouterr().err == line + "\n"


def test_plain_lines_where_there_is_no_terminal(capsys):
  state = {"step": 1, "total_steps": 9, "eta": 3.0, "row": ROW}
  with Progress(every_seconds=60) as progress:
    progress.train(state)
    progress.train({**state, "step": 2})  # too soon
    progress.train({**state, "step": 9, "goodput": 0.5})
  first, last = capsys.readouterr().err.splitlines()
  assert first.startswith("step 1/9 loss 1.5000") and "goodput" not in first
  assert last.startswith("step 9/9") and "goodput 50%" in last
