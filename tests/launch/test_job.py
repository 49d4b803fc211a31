"""Launching, whatever the engine: names, hosts, storage, refusals, sending."""

import importlib
import json
import stat
from pathlib import Path

import pytest

from tests.launch.samples import (
  GKE,
  MOUNT,
  SKY,
  SLURM,
  TPU_VM,
  complaint,
  dry,
  launch,
)
from vitscale.core import config as config_lib
from vitscale.core import topology as topology_lib
from vitscale.core.errors import UserError
from vitscale.launch import job as job_lib
from vitscale.launch.engines import ENGINES, OPTIONS


@pytest.mark.parametrize(
  ("name", "on_vms", "on_gke", "cloud"),
  [
    ("v5e:2x4", 1, 2, "v5litepod-8"),
    ("v5e:16x16", 64, 64, "v5litepod-256"),
    ("2xv6e:4x4", 8, 8, "v6e-16"),
    ("v4:2x2x1", 1, 1, "v4-8"),
    ("v5p:8x8x8", 128, 128, "v5p-1024"),
  ],
)
def test_hosts_and_names_of_slices(name, on_vms, on_gke, cloud):
  topology = topology_lib.parse(name)
  assert job_lib.hosts(topology) == on_vms
  assert job_lib.hosts(topology, largest=4) == on_gke
  assert job_lib.cloud_name(topology) == cloud
  assert job_lib.is_usual(topology)


def test_shapes_that_a_name_does_not_say():
  assert not job_lib.is_usual(topology_lib.parse("v5p:4x4x32"))
  assert not job_lib.is_usual(topology_lib.parse("v4:4x4x12"))
  assert job_lib.hosts(topology_lib.parse("gpu:16xH100")) == 2
  assert job_lib.hosts(topology_lib.parse("gpu:4xA100")) == 1


def test_slugs_are_names_and_keep_texts_apart():
  texts = ["vit_pod", "vit-pod", "1e+09-w8-s0", "1e-09-w8-s0", "A" * 80, "7",
           "", "runs/best", "x" * 40]  # fmt: skip
  slugs = [job_lib.slug(text) for text in texts]
  for name in slugs:
    job_lib.check_name(name)
  assert len({*slugs}) == len(slugs) - 1  # vit_pod is vit-pod
  assert job_lib.slug("x" * 40) == "x" * 40


@pytest.mark.parametrize(
  "name", ["Upper", "under_score", "x" * 41, "-dash", "dash-", "9lives", ""]
)
def test_names_that_engines_refuse(name):
  with pytest.raises(UserError, match=r"lower-case letters.*--name"):
    job_lib.check_name(name)


@pytest.mark.parametrize(
  ("path", "message"),
  [
    ("runs", "relative, so each machine's own"),
    ("/tmp/runs", "/tmp is each machine's own"),
    ("/root/runs", "/root is each machine's own"),
    ("gs://lab/runs", "--mount gs://BUCKET=/mnt/BUCKET"),
  ],
)
def test_folders_that_others_do_not_see(path, message):
  with pytest.raises(UserError, match=r"shared storage|mount") as error:
    job_lib.check_shared(path)
  assert message in str(error.value)
  job_lib.check_shared("/lab/runs")


@pytest.mark.parametrize(
  "text", ["gs://lab", "lab=/mnt/lab", "gs://lab=mnt", "nas:lab=/x", "=/x"]
)
def test_mounts_that_are_none(text):
  with pytest.raises(UserError, match=r"--mount .* is not gs://BUCKET=/FOLDER"):
    job_lib.mount(text)


# ---------------------------------------------------------------- bad input

POD = ("vit_pod", "--topology", "v5e:4x4")


@pytest.mark.parametrize(
  ("args", "message"),
  [
    ((*POD, "--on", "slrum", "--out", "/lab"), "did you mean 'slurm'?"),
    ((*POD, "--on", "k9", "--out", "/lab"), "one of: gcloud_tpu, gke, "),
    (("vit_pod", "--topology", "v5x:4x4", *TPU_VM), "no chip 'v5x', did you"),
    (("vit_pod", "--topology", "gpu:8xH100", *TPU_VM),
     "gcloud_tpu has no GPUs for gpu:8xH100: use --on skypilot or slurm"),
    (("vit_pod", "--topology", "gpu:8xH100", *GKE), "gke has no GPUs"),
    ((*POD, *SLURM),
     "slurm has no TPUs for v5e:4x4: use --on gcloud_tpu or gke or skypilot"),
    (("vit_pod", *TPU_VM), "gcloud_tpu needs --topology"),
    ((*POD, "--on", "gcloud_tpu", "--out", "/mnt/lab"),
     "gcloud_tpu needs --project and --zone and --install"),
    ((*POD, *GKE[:6], "--out", "/lab"),
     "gke needs --cluster and --image and --storage"),
    ((*POD, *TPU_VM, "--partition", "gpu"),
     "--partition is not for gcloud_tpu but for slurm"),
    (("vit_pdo", "--topology", "v5e:4x4", *TPU_VM), "mean 'vit_pod'?"),
    ((*POD, *TPU_VM, "optim.lrr=1"), "did you mean 'optim.lr'?"),
    ((*POD, *TPU_VM, "--name", "My_Run"), "--name my-run"),
    ((*POD, *TPU_VM, "--name", "x" * 41), "at most 40 lower-case letters"),
    ((*POD, *TPU_VM, "--env", "A"), "--env 'A' is not NAME=VALUE"),
    ((*POD, *TPU_VM, "--restarts", "-1"), "--restarts -1: 0 or more"),
    ((*POD, *TPU_VM[:8], "--out", "/mnt/lab/runs"),
     "/mnt/lab/runs/vit-pod would be on the machines' own disks"),
    ((*POD, *SKY[:4], "--out", "/data/runs"), "is not below /mnt/lab"),
    ((*POD, *SKY[:2], "--out", "gs://lab"), "vitscale writes to folders"),
    ((*POD, *GKE, *MOUNT), "give --storage NAME instead of --mount"),
    (("vit_pod", *SLURM[:4], "--out", "/tmp/runs"), "is not shared storage"),
    (("vit_pod", *SLURM, "--spot"), "slurm has no --spot"),
    (("vit_pod", *SLURM, "--hours", "soon"), "'soon' is not a number above 0"),
    (("patchify", *SLURM), "patchify is a study: give --scale"),
    (("patchify", *SLURM, "--scale", "smok"), "did you mean 'smoke'?"),
    (("patchify", *SLURM, "--scale", "smoke", "seed=1"), "takes no overrides"),
    (("chinchilla", *SLURM, "--scale", "cpu"), "has no runs to launch"),
    (("patchify", *SKY, "--scale", "smoke"), "skypilot needs --topology"),
  ],
)  # fmt: skip
def test_bad_input(capfd, args, message):
  assert message in complaint(capfd, *args)


def test_a_config_that_the_machines_do_not_see(capfd, tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from vitscale.core import config as config_lib\n"
    "get_config = lambda arg: config_lib.load('vit_fashion').unlock()\n"
  )
  text = complaint(capfd, str(path), "--topology", "v5e:4x4", *TPU_VM)
  assert "put it below /mnt/lab, or into configs/" in text
  job = dry(capfd, str(path), *SLURM)  # nodes of a cluster see this folder
  assert f"train {path} --workdir /lab/runs/mine" in str(job["files"])


# ------------------------------------------------------------------- sending


@pytest.fixture
def engine(tmp_path, monkeypatch):
  """A PATH with one command that notes how it was called."""
  (tmp_path / "bin").mkdir()
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PATH", str(tmp_path / "bin"))

  def install(name, code=0):
    path = tmp_path / "bin" / name
    path.write_text(
      f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho hi\nexit {code}\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)

  return install


@pytest.mark.parametrize(
  ("args", "program"),
  [
    ((*POD, *TPU_VM), "gcloud"), ((*POD, *GKE), "xpk"), ((*POD, *SKY), "sky"),
    (("vit_fashion", "--on", "slurm", "--out", "/nowhere/runs"), "sbatch"),
  ],
)  # fmt: skip
def test_without_the_engines_command(engine, capfd, args, program):
  code, result, err = launch(capfd, *args)
  assert (code, result) == (2, None)
  assert err.startswith(f"vitscale: {program} is not installed here; needed")
  assert err.count("\n") == 1
  assert [p.name for p in Path().iterdir()] == ["bin"]


def test_a_dry_run_touches_nothing(engine, capfd):
  for args in ((*POD, *TPU_VM), ("patchify", "--scale", "smoke", *SLURM)):
    assert dry(capfd, *args)["commands"]
  assert [p.name for p in Path().iterdir()] == ["bin"]


def test_sending_writes_files_and_calls_the_engine(engine, capfd):
  engine("sky")
  code, result, err = launch(capfd, *POD, *SKY, "--files", "mine")
  assert code == 0 and result["submitted"], err
  (path,) = result["files"]
  assert path == "mine/vit-pod.yaml"
  assert Path(path).read_text() == result["files"][path]
  assert Path("calls").read_text() == " ".join(result["commands"][0][1:]) + "\n"
  assert "hi" in err  # the engine's words don't mix with the object


def test_an_engine_that_refuses(engine, capfd):
  engine("sky", code=3)
  code, result, err = launch(capfd, *POD, *SKY)
  assert code == 1 and not result["submitted"]
  assert "sky jobs launch" in err and "ended with 3" in err


# -------------------------------------------------------------------- configs


def test_a_written_config_is_the_same_run(tmp_path):
  from vitscale import study

  (run,) = [r for r in _runs("patchify") if r.name == _runs("patchify")[0].name]
  path = tmp_path / "run.json"
  path.write_text(json.dumps(config_lib.to_dict(run.config)))
  loaded = config_lib.load(str(path))
  assert config_lib.digest(loaded) == config_lib.digest(run.config)
  assert loaded.is_locked
  changed = config_lib.load(str(path), ["optim.lr=0.5"])
  assert changed.optim.lr == 0.5
  assert isinstance(run, study.Run)


def _runs(name):
  from vitscale import study, study_report

  _, module = study.find(name, "smoke")
  with study_report.no_accelerator():
    return module.runs("smoke", {})


@pytest.mark.parametrize(
  ("text", "spec", "message"),
  [
    ("{", "c.json", "c.json is not JSON"),
    ("[1]", "c.json", "is no object"),
    ("{}", "c.json:a=1", "takes no arguments"),
  ],
)
def test_json_that_is_no_config(tmp_path, monkeypatch, text, spec, message):
  monkeypatch.chdir(tmp_path)
  Path("c.json").write_text(text)
  with pytest.raises(UserError, match=message):
    config_lib.load(spec)


def test_every_option_of_the_command_is_some_engines():
  takes = [
    importlib.import_module(f"vitscale.launch.{name}").TAKES for name in ENGINES
  ]
  assert set(OPTIONS) == set().union(*takes)
