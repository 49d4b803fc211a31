"""Slurm's batch scripts: goldens, what they do after each exit code, Slurm."""

import os
import subprocess

import pytest

from tests.launch.samples import SLURM, check_golden, dry, program, write

CASES = {
  "slurm_gpus": ("vit_pod", "--topology", "gpu:16xH100", "--partition", "gpu",
                 "--account", "lab", "--hours", "12", "batch_size=2048"),
  "slurm_gpu": ("vit_pod", "--topology", "gpu:1xH200", "--cpus", "8",
                "--memory", "64G", "--env", "A=it's 1"),
  "slurm_cpu": ("vit_fashion:patch=4", "--cpus", "2", "--restarts", "3"),
  "slurm_study": ("patchify", "--scale", "smoke", "--parallel", "4"),
}  # fmt: skip


def case(capfd, name):
  return dry(capfd, *CASES[name], *SLURM)


@pytest.mark.parametrize("name", CASES)
def test_golden(capfd, name):
  check_golden(name, case(capfd, name))


@pytest.mark.parametrize("name", CASES)
def test_slurm_reads_the_script(capfd, tmp_path, name):
  (path,) = write(tmp_path, case(capfd, name))
  subprocess.run(["bash", "-n", path], check=True)
  sbatch = program("sbatch")
  if subprocess.run([program("sinfo")], capture_output=True).returncode:
    pytest.skip("no Slurm cluster here")
  asked = [sbatch, "--test-only", path]
  done = subprocess.run(asked, capture_output=True, text=True)
  # What this cluster hasn't got is no fault of the script.
  lacks = ("partition", "account", "node configuration", "gres", "memory")
  good = not done.returncode or any(x in done.stderr.lower() for x in lacks)
  assert good and "unrecognized option" not in done.stderr, done.stderr


STAND_INS = """
srun() { echo "srun $*" >> calls; return "$CODE"; }
squeue() { echo "$STATE"; }
scontrol() { echo "scontrol $*" >> calls; }
"""


@pytest.mark.parametrize(
  ("code", "state", "count", "requeues"),
  [
    (0, "RUNNING", "", False),
    (1, "RUNNING", "", False),  # a failure is an answer
    (2, "RUNNING", "", False),
    (75, "RUNNING", "", True),
    (75, "RUNNING", "2", True),
    (75, "RUNNING", "3", False),  # often enough
    (75, "COMPLETING", "", False),  # cancelled, or Slurm requeues it
    (137, "RUNNING", "", True),
  ],
)
def test_after_the_run(capfd, tmp_path, code, state, count, requeues):
  (path,) = write(tmp_path, case(capfd, "slurm_cpu"))
  env = {**os.environ, "SLURM_JOB_ID": "7", "CODE": str(code), "STATE": state}
  if count:
    env["SLURM_RESTART_COUNT"] = count
  done = subprocess.run(
    ["bash", "-c", STAND_INS + path.read_text()], env=env, cwd=tmp_path
  )
  assert done.returncode == code
  calls = (tmp_path / "calls").read_text().splitlines()
  assert calls[0].endswith(
    "/lab/venv/bin/vitscale train vit_fashion:patch=4 --workdir"
    " /lab/runs/vit-fashion"
  )
  assert calls[1:] == (["scontrol requeue 7"] if requeues else [])


def test_each_task_of_an_array_has_its_run(capfd, tmp_path):
  result = case(capfd, "slurm_study")
  (path,) = write(tmp_path, result)
  for index in (0, len(result["jobs"]) - 1):
    env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index), "CODE": "0"}
    subprocess.run(
      ["bash", "-c", STAND_INS + path.read_text()], env=env, cwd=tmp_path
    )
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last.endswith(f"--workdir {result['jobs'][index]['workdir']}")
