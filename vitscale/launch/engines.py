"""Names of engines and of their options; imports nothing."""

ENGINES = ("gcloud_tpu", "gke", "skypilot", "slurm")

# Options that only some engines take, see their `TAKES`.
OPTIONS = {
  "project": "gcloud_tpu, gke: Google Cloud project",
  "zone": "gcloud_tpu, gke: Google Cloud zone",
  "cluster": "gke: name of the GKE cluster",
  "image": "gke: container image with vitscale in it",
  "storage": "gke: storage attached to the cluster, mounted in every pod",
  "priority": "gke: very-low to very-high",
  "install": "gcloud_tpu, skypilot: what pip installs on the machines",
  "runtime": "gcloud_tpu: TPU software version instead of the usual one",
  "network": "gcloud_tpu: name of the network",
  "infra": "skypilot: where: gcp, aws/us-east-1, k8s/CONTEXT, ...",
  "code": "skypilot: folder that is copied to the machines and installed",
  "partition": "slurm: as for sbatch",
  "account": "slurm: as for sbatch",
  "qos": "slurm: as for sbatch",
  "hours": "slurm: time limit of a job; it goes on in a next one",
  "cpus": "slurm: CPUs a process",
  "memory": "slurm: of a node, as for sbatch --mem",
  "parallel": "slurm: runs of a study at once",
  "venv": "slurm: environment with vitscale, default this one",
}
