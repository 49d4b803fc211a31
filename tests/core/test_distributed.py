"""core/distributed: what is refused; two real processes: tests/multidevice."""

import http.server
import socket
import threading

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


@pytest.mark.parametrize(
  ("environ", "mode"),
  [
    ({}, "none"),
    (SLURM, "slurm"),
    ({**SLURM, "SLURM_NTASKS": "1"}, "none"),
    # a batch script or a shell of salloc, without srun
    ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, "none"),
    ({"OMPI_COMM_WORLD_SIZE": "4"}, "auto"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "auto"),
    ({"TPU_WORKER_HOSTNAMES": "a"}, "none"),
    ({"JOBSET_NAME": "run"}, "auto"),
  ],
)
def test_what_the_surroundings_ask_for(environ, mode):
  assert distributed.detect(environ) == mode


@pytest.mark.parametrize(
  ("attributes", "mode"),
  [
    ({"worker-network-endpoints": "::10.0.0.2,::10.0.0.3"}, "auto"),
    ({"worker-network-endpoints": "::10.0.0.2"}, "none"),
    (
      {"worker-network-endpoints": "::10.0.0.2",
       "tpu-env": "ZONE: 'us'\nMEGASCALE_NUM_SLICES: '2'\n"},
      "auto",
    ),
    ({}, "none"),
  ],
)  # fmt: skip
def test_tpu_vms_ask_their_metadata_server(monkeypatch, attributes, mode):
  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      text = attributes.get(self.path.rpartition("/")[2])
      good = text and self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200 if good else 404)
      self.end_headers()
      self.wfile.write((text if good else "").encode())

    def log_message(self, *args):
      pass

  monkeypatch.setattr(distributed.machine, "has_tpu", lambda: True)
  with http.server.HTTPServer(("localhost", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"localhost:{server.server_port}"
    assert distributed.detect({"GCE_METADATA_IP": address}) == mode
    server.shutdown()


@pytest.mark.parametrize("address", ["localhost", "localhost:x", ":1", "a:0"])
def test_addresses_without_a_port(address):
  with pytest.raises(UserError, match="not HOST:PORT"):
    distributed.initialize(
      "explicit", coordinator=address, num_processes=2, process_id=1
    )


def test_a_port_that_is_taken():
  with socket.socket() as taken:
    taken.bind(("", 0))
    taken.listen()
    address = f"localhost:{taken.getsockname()[1]}"
    with pytest.raises(UserError, match=f"process 0 can't listen .*{address}"):
      distributed.initialize(
        "explicit", coordinator=address, num_processes=2, process_id=0
      )


def test_agreement_of_one():
  assert distributed.any_of(True) and not distributed.any_of(False)
  assert distributed.every(True) and not distributed.every(False)
  assert distributed.from_main(lambda x: [x, None], 1) == [1, None]
  distributed.barrier("alone")
