"""What is launched, whatever the engine: one `vitscale train` on some machines.

An engine is a module of this package, picked by its name, with

    SERVES                 "tpu", "gpu", "cpu": the hardware it can give
    TAKES, NEEDS           its options, and those it can't do without
    PROGRAM, INSTALL       the command that submits, and how to get it
    check(job)             raises UserError for what it can't do
    render(jobs)           {file name: text}, from nothing but the jobs
    commands(jobs, folder) the argv that submit what lies in `folder`
    undo(jobs)             the argv that take the jobs away again

Exit code 75 of `vitscale train` means "run me again" (saved and stopped, or
found stuck); it, and death by a signal, start a run again, at most `restarts`
times. Other codes are answers. A run goes on from its last checkpoint, so it
needs a workdir that outlives its machines.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from vitscale.core import topology as topology_lib
from vitscale.core.errors import UserError

AGAIN = 75
NAME_LENGTH = 40  # xpk's limit, the shortest of all
# Folders that every machine has for itself.
PRIVATE = ("/tmp", "/var", "/dev", "/run", "/root", "/usr", "/opt", "/etc")


@dataclasses.dataclass(frozen=True)
class Mount:
  """Shared storage and the folder where each machine sees it.

  Attributes:
    source: `gs://BUCKET` or `HOST:/EXPORT` (NFS).
    folder: absolute path.
  """

  source: str
  folder: str

  @property
  def bucket(self) -> str:
    """The bucket's name, "" for NFS."""
    found = re.fullmatch(r"gs://([\w.-]+)/?", self.source)
    return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Job:
  """One run.

  Attributes:
    name: unique with its engine; lower-case letters, digits and dashes.
    config: what `vitscale train` takes as its config.
    workdir: absolute, on storage that outlives the machines.
    topology: hardware; None: CPUs of one machine.
    overrides: `key=value` strings.
    mount: storage to mount before the run starts.
    spot: cheaper machines that may be taken away.
    restarts: how often a run is started again, see the module.
    env: further environment of the run.
    options: the engine's own, by the names in its `TAKES`.
  """

  name: str
  config: str
  workdir: str
  topology: topology_lib.Topology | None = None
  overrides: tuple[str, ...] = ()
  mount: Mount | None = None
  spot: bool = False
  restarts: int = 20
  env: Mapping[str, str] = dataclasses.field(default_factory=dict)
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def train(self, program: str = "vitscale", *more: str) -> list[str]:
    """The argv of the run, the same on each of its hosts."""
    run = [program, "train", self.config, *self.overrides]
    return [*run, "--workdir", self.workdir, *more]

  @property
  def hardware(self) -> str:
    if self.topology is None:
      return "cpu"
    return "tpu" if self.topology.is_tpu else "gpu"


def hosts(topology: topology_lib.Topology, largest: int = 8) -> int:
  """Machines of a topology.

  Args:
    topology: what is asked for.
    largest: chips of the largest one-host slice of v5e and v6e: 8 on TPU VMs,
      4 on GKE. All other hosts of slices have 4.
  """
  if not topology.is_tpu:
    return -(-topology.gpus // topology_lib.NODE)
  chips = math.prod(topology.shape)
  most = largest if topology.chip in ("v5e", "v6e") else 4
  return topology.slices * (1 if chips <= most else -(-chips // 4))


def cloud_name(topology: topology_lib.Topology) -> str:
  """`v5litepod-256`: a slice of a TPU as Google Cloud calls it."""
  prefix = "v5litepod" if topology.chip == "v5e" else topology.chip
  count = math.prod(topology.shape) * max(topology.spec.cores, 1)
  return f"{prefix}-{count}"


def is_usual(topology: topology_lib.Topology) -> bool:
  """Whether `cloud_name` alone gives this shape."""
  try:
    usual = topology_lib.parse(cloud_name(topology))
  except UserError:
    return False
  return usual.shape == topology.shape


# --------------------------------------------------------------------- checks


def mount(text: str) -> Mount:
  """The `Mount` of `gs://BUCKET=/FOLDER` or `HOST:/EXPORT=/FOLDER`.

  Raises:
    UserError: it is neither.
  """
  source, _, folder = text.rpartition("=")
  good = re.fullmatch(r"gs://[\w.-]+/?|[\w.-]+:/[\w./-]*", source)
  if not good or not re.fullmatch(r"/[\w./-]*\w", folder):
    raise UserError(
      f"--mount {text!r} is not gs://BUCKET=/FOLDER or HOST:/EXPORT=/FOLDER"
    )
  return Mount(source, folder)


def check_name(name: str) -> None:
  """Raises UserError for a name that some engine refuses."""
  good = re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name)
  if not good or len(name) > NAME_LENGTH:
    raise UserError(
      f"name {name!r}: engines take at most {NAME_LENGTH} lower-case letters,"
      f" digits and dashes, a letter first: --name {slug(name)}"
    )


def slug(text: str) -> str:
  """The text as a name that `check_name` takes.

  What had to be dropped or cut comes back as a hash, so that two texts don't
  meet in one name.
  """
  plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
  if not plain or not plain[0].isalpha():
    plain = f"run-{plain}".strip("-")
  if len(plain) <= NAME_LENGTH and len(plain) == len(text):
    return plain
  mark = hashlib.sha256(text.encode()).hexdigest()[:6]
  return f"{plain[: NAME_LENGTH - 7].rstrip('-')}-{mark}"


def check_shared(path: str, mounted: Mount | None = None) -> None:
  """Raises UserError for a folder that other machines would not see.

  Args:
    path: a workdir or the folder of a study.
    mounted: storage that the engine mounts; the path has to lie there.
  """
  if re.match(r"\w+://", path):
    raise UserError(
      f"{path}: vitscale writes to folders; mount the bucket with"
      f" --mount gs://BUCKET=/mnt/BUCKET and give --out /mnt/BUCKET/..."
    )
  if mounted is not None:
    if f"{path}/".startswith(f"{mounted.folder}/"):
      return
    raise UserError(
      f"{path} is not below {mounted.folder}, where {mounted.source} is"
      f" mounted: give --out {mounted.folder}/..."
    )
  private = [p for p in PRIVATE if f"{path}/".startswith(f"{p}/")]
  if not path.startswith("/") or private:
    where = f"{private[0]} is" if private else "it is relative, so"
    raise UserError(
      f"{path} is not shared storage: {where} each machine's own;"
      " give --out a folder that all machines see"
    )


def need_mount(job: Job, engine: str) -> None:
  """Raises UserError unless the workdir outlives the job's machines."""
  if job.mount is None:
    check_shared(job.workdir)
    raise UserError(
      f"{job.workdir} would be on the machines' own disks, which go with them:"
      f" {engine} needs --mount gs://BUCKET=/FOLDER or HOST:/EXPORT=/FOLDER"
    )
  check_shared(job.workdir, job.mount)
