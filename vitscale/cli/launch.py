"""`vitscale launch` on the command line: its options, and what they mean."""

import argparse
from typing import Any

from vitscale.launch.engines import ENGINES, OPTIONS

EXAMPLE = "launch vit_fashion --on slurm --out /lab/runs --dry-run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "what", metavar="CONFIG|STUDY", help="as for train, study"
  )
  parser.add_argument("overrides", nargs="*", metavar="key=value")
  parser.add_argument("--on", required=True, metavar="|".join(ENGINES))
  parser.add_argument(
    "--topology", help="v5e:16x16, v5litepod-256, gpu:8xH100: as for plan"
  )
  parser.add_argument(
    "--out", required=True,
    help="folder that all machines see: of a study; of a config's workdir NAME",
  )  # fmt: skip
  parser.add_argument("--scale", help="of a study, see its README")
  parser.add_argument("--name", help="of the job; default after CONFIG")
  parser.add_argument(
    "--mount", metavar="SOURCE=FOLDER",
    help="gs://BUCKET=/FOLDER or HOST:/EXPORT=/FOLDER, mounted on the machines",
  )  # fmt: skip
  parser.add_argument(
    "--spot", action="store_true", help="machines that may be taken away"
  )
  parser.add_argument(
    "--restarts", type=int, default=20, help="after preemption or a crash"
  )
  parser.add_argument(
    "--env", nargs="+", default=[], metavar="NAME=VALUE", help="of the run"
  )
  parser.add_argument(
    "--again", action="store_true", help="send runs that are out or failed anew"
  )
  parser.add_argument(
    "--dry-run", action="store_true", help="print all, touch nothing"
  )
  parser.add_argument(
    "--files", help="folder for what is rendered; default launch/NAME"
  )
  for name, text in OPTIONS.items():
    parser.add_argument(f"--{name}", help=text)


def run(args: argparse.Namespace) -> tuple[dict[str, Any], int]:
  """Sends a config, or the next runs of a study, to machines elsewhere.

  Renders what an engine takes and submits it; --dry-run prints it. Runs that
  are preempted go on from their last checkpoint. A study is launched round by
  round: the same command later sends what has become due.
  """
  from vitscale.launch import send

  return send.run(args)
