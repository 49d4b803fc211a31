"""core/distributed: what is refused; two real processes: tests/multidevice."""

import pytest

from vitscale.core import distributed
from vitscale.core.errors import UserError

SLURM = {
  "SLURM_JOB_ID": "1",
  "SLURM_STEP_NODELIST": "a",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "0",
  "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
  ("kwargs", "says"),
  [
    ({"dist": "slrum"}, "did you mean 'slurm'"),
    ({"dist": "explicit"}, "needs coordinator, num_processes, process_id"),
    (
      {
        "dist": "explicit",
        "coordinator": "localhost:1",
        "num_processes": 2,
        "process_id": 2,
      },
      "process_id 2 is not in 0..1",
    ),
    ({"dist": "none", "process_id": 0}, "does not take process_id"),
    ({"dist": "slurm", "environ": {}}, "SLURM_JOB_ID"),
    (
      {"dist": "slurm", "environ": {**SLURM} | {"SLURM_PROCID": "0"}},
      None,
    ),
  ],
)
def test_errors(kwargs, says, monkeypatch):
  calls = []
  monkeypatch.setattr(
    distributed.jax.distributed, "initialize", lambda *a, **k: calls.append(k)
  )
  if says is None:
    distributed.initialize(**kwargs)
    assert calls[0]["cluster_detection_method"] == "slurm"
    return
  with pytest.raises(UserError, match=says):
    distributed.initialize(**kwargs)
  assert not calls


def test_a_half_set_slurm_environment_is_refused():
  environ = {k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}
  with pytest.raises(UserError, match="SLURM_PROCID not set; start with srun"):
    distributed.initialize("slurm", environ=environ)


def test_auto_without_a_cluster_is_an_error(monkeypatch):
  def fail(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(distributed.jax.distributed, "initialize", fail)
  with pytest.raises(UserError, match="use dist='none'"):
    distributed.initialize("auto")


def test_one_process():
  distributed.initialize("none")
  assert distributed.is_main()
  assert (distributed.process_index(), distributed.process_count()) == (0, 1)
