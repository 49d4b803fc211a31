"""What a study says at its end: the page, report.json, and the terminal.

Errors of a study's own analysis are kept and reported; the runs stay.
"""

import contextlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

import vitscale
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, write_json
from vitscale.launch.board import outcome
from vitscale.report import page, plain

FAILURES, RUNS = "Runs that did not finish", "Runs"  # our own tables


class Analysis(TypedDict, total=False):
  """What `analyse` returns; every key is optional."""

  title: str
  text: str  # opens the report
  laws: Sequence[Any]  # dicts with name, params, ci95, n (`Fit.card()`)
  verdicts: Sequence[Any]  # `laws.Verdict` or the same as dicts
  tables: Sequence[Any]  # `report.page.Table`, printed as well
  figures: Sequence[Any]  # `report.figures.Figure`
  sections: Sequence[Any]  # `report.page.Section`, in the page only
  files: Mapping[str, Any]  # name -> JSON value, written beside the report


def judge(
  module: Any,
  result: dict[str, Any],
  folder: Path,
  files: Mapping[str, Path],
  *,
  start: float,
) -> None:
  """Analyses and writes the report into `result`; errors are kept there.

  Raises:
    UserError: the study's data are no good; there are no runs to lose.
  """
  results = {run["name"]: run for run in result["runs"]}
  analysis: Analysis = {}
  try:
    with no_accelerator():
      given = (files,) if files else ()
      analysis = module.analyse(results, result["scale"], *given)
    for key in ("laws", "verdicts", "tables"):
      result[key] = plain.to_json(list(analysis.get(key, ())))
  except Exception as error:
    if isinstance(error, UserError) and files and not results:
      raise
    traceback.print_exc()
    result["errors"].append(f"analyse: {one_line(error)}")
  result["seconds"] = round(time.monotonic() - start, 1)
  try:
    result["report"] = str(_write_report(module, analysis, result, folder))
  except Exception as error:
    traceback.print_exc()
    result["errors"].append(f"report: {one_line(error)}")
    if analysis:  # a figure that can't be drawn must not hide the rest
      bare: Analysis = {"text": analysis.get("text", "")}
      result["report"] = str(_write_report(module, bare, result, folder))


def _write_report(
  module: Any,
  analysis: Analysis,
  result: Mapping[str, Any],
  folder: Path,
) -> Path:
  out = Path(result["out"])
  for filename, value in analysis.get("files", {}).items():
    write_json(out / filename, value)
  doc = (module.__doc__ or result["study"]).strip().split("\n\n")[0]
  bad = [run for run in result["runs"] if run["status"] != "finished"]
  text = analysis.get("text") or doc
  trouble = [f"**{line}**" for line in result["errors"]]
  if bad:
    trouble.append(
      f"**{len(bad)} of {len(result['runs'])} runs did not finish**: see below."
    )
  sections = list(analysis.get("sections", ()))
  if bad:
    rows = [
      {key: run.get(key, "") for key in ("name", "status", "error", "log")}
      for run in bad
    ]
    table = page.Table(FAILURES, rows)
    sections.insert(0, page.Section("Failures", tables=[table]))
  if result["runs"]:
    table = page.Table(RUNS, _rows(result))
    sections.append(page.Section("All runs", tables=[table]))
  return page.write(
    out / "report.html",
    title=analysis.get("title") or f"{result['study']} ({result['scale']})",
    intro="\n\n".join([text, *trouble]),
    verdicts=result["verdicts"],
    tables=list(analysis.get("tables", ())),
    figures=list(analysis.get("figures", ())),
    sections=sections,
    meta=_meta(result, folder),
    data={
      k: result[k]
      for k in ("study", "scale", "seconds", "data", "runs", "laws")
    },
  )


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """One flat row per run: what the study set, and the held-out scores."""
  rows = []
  for run in result["runs"]:
    scores = {
      key: value
      for key, value in run["metrics"].items()
      if key.startswith("eval/")
    }
    rows.append(
      {
        "name": run["name"],
        "status": run["status"],
        **run["law_variables"],
        **scores,
        "seconds": run["seconds"],
      }
    )
  return rows


def _meta(result: Mapping[str, Any], folder: Path) -> dict[str, Any]:
  """Small facts for the foot of the page."""
  facts: Mapping[str, Any] = {} if result["runs"] else _here()
  for run in result["runs"]:
    if run["status"] == "finished":
      facts = read_json(Path(run["workdir"]) / "run.json") or {}
      break
  versions = facts.get("versions") or {}
  device = facts.get("devices") or ["unknown"]
  files = result["data"].items()
  return {
    "study": f"{folder.name}/README.md",
    "scale": result["scale"],
    **({"runs": len(result["runs"])} if result["runs"] else {}),
    **{name: f"sha256 {file['sha256'][:16]}" for name, file in files},
    "seconds": result["seconds"],
    "device": str(device[0]),
    "cores": os.cpu_count(),
    "commit": facts.get("git_commit") or "none",
    "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
  }


def _here() -> dict[str, Any]:
  """What a run would know of its machine, for a study without any."""
  from vitscale.train import git_commit

  packages = ("jax", "jaxlib", "numpy", "scipy")
  return {
    "devices": [_processor()],
    "git_commit": git_commit(),
    "versions": {"vitscale": vitscale.__version__}
    | {name: metadata.version(name) for name in packages},
  }


def _processor() -> str:
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    lines = []
  named = (x.partition(":")[2].strip() for x in lines if "model name" in x)
  return next(named, platform.processor() or platform.machine())


def summary(result: Mapping[str, Any]) -> str:
  """What a study says at its end: tables, verdicts, failures, the report."""
  parts = []
  runs = result["runs"]
  tables = result["tables"]
  if not tables and runs and result["report"]:
    tables = [{"title": RUNS, "rows": _rows(result), "columns": None}]
  for table in tables:
    text = plain.table(table["rows"], table["columns"])
    parts.append(f"{table['title']}\n{text}")
  if result["verdicts"]:
    parts.append(
      "\n".join(
        f"{v['verdict']:>13}: {v['claim']}\n{'':15}{v.get('measured', '')}"
        for v in result["verdicts"]
      )
    )
  lines = [f"FAILED {outcome(r)}" for r in runs if r["status"] == "failed"]
  lines += [f"FAILED {error}" for error in result["errors"]]
  waiting = sum(run["status"] == "interrupted" for run in runs)
  if waiting:
    lines.append(
      f"interrupted with {waiting} runs left: the same command goes on"
    )
  if lines:
    parts.append("\n".join(lines))
  n = sum(run["status"] == "finished" for run in runs)
  head = f"{n} of {len(runs)} runs finished" if runs else result["status"]
  where = f"report: {result['report']}" if result["report"] else result["out"]
  parts.append(f"{head} in {result['seconds']:.0f} s\n{where}")
  return "\n\n".join(parts)


@contextlib.contextmanager
def no_accelerator() -> Iterator[None]:
  """A study's code that uses jax must not take a GPU from its runs.

  Where jax has looked for its devices before, it keeps them.
  """
  before, jax = os.environ.get("JAX_PLATFORMS"), sys.modules.get("jax")
  os.environ["JAX_PLATFORMS"] = "cpu"  # read when jax is imported
  asked = jax and jax.config.jax_platforms
  if jax:
    jax.config.update("jax_platforms", "cpu")
  try:
    yield
  finally:
    if jax:
      jax.config.update("jax_platforms", asked)
    if before is None:
      os.environ.pop("JAX_PLATFORMS", None)
    else:
      os.environ["JAX_PLATFORMS"] = before


def one_line(error: BaseException) -> str:
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text}" if text else type(error).__name__
