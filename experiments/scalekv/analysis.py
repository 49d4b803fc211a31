"""What evicted caches of scalekv cost: claims, tables, figures, pictures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitscale import tokenizer, workdir
from vitscale.arms import (
  Results,
  difference,
  finished,
  interval,
  judged,
  said,
  spread,
)
from vitscale.core.errors import UserError
from vitscale.laws.verdict import Answer, Verdict, all_of, decide
from vitscale.report.figures import Axis, Band, Figure, Line, Panel
from vitscale.report.page import Section, Table
from vitscale.report.pictures import Picture, sheet

ARMS = ("scalekv", "even", "latest", "random")
CLAIMED = 0.1  # share of the claims
BAR_BYTES, BAR_KL = 0.12, 0.01
DRAWS = 2000  # of the bootstrap over images
LEAST = 1e-12  # nats, so that nothing lost has a logarithm

Measured = Mapping[int, Mapping[str, Any]]  # seed -> of measure.measure


def cell(
  measured: Measured, share: float, arm: str
) -> dict[int, Mapping[str, Any]]:
  """seed -> scores of one arm at one budget."""
  return {
    seed: found["cells"][f"{share:g}"][arm]
    for seed, found in sorted(measured.items())
    if arm in found["cells"].get(f"{share:g}", {})
  }


def ratio(a: Any, b: Any) -> float:
  """ln of mean KL over mean KL."""
  return math.log(max(np.mean(a), LEAST) / max(np.mean(b), LEAST))


def over_images(a: Any, b: Any, seed: int) -> tuple[float, float]:
  """95 % interval of `ratio` over images, which are paired."""
  a, b = np.asarray(a), np.asarray(b)
  rows = np.random.default_rng(seed).integers(0, len(a), (DRAWS, len(a)))
  floor = lambda x: np.maximum(x[rows].mean(1), LEAST)
  low, high = np.quantile(np.log(floor(a) / floor(b)), [0.025, 0.975])
  return float(low), float(high)


def better(
  measured: Measured, claim: str, others: Sequence[str], share: float
) -> Verdict:
  """ln KL of scalekv over that of others is below 0, seeds and images.

  Images can take support away, they refute nothing.
  """
  answers: dict[str, Answer] = {}
  texts, first = [], []
  mine = cell(measured, share, "scalekv")
  for other in others:
    theirs = cell(measured, share, other)
    seeds = sorted(set(mine) & set(theirs))
    pair = {s: (mine[s]["kl"], theirs[s]["kl"]) for s in seeds}
    values = [ratio(*pair[s]) for s in seeds]
    first = first or values
    answers[other] = decide(interval(values), 0.0, "below")
    most = max((over_images(*pair[s], seed=s)[1] for s in seeds), default=0.0)
    if answers[other] == "supported" and most >= 0:
      answers[other] = "inconclusive"
    if seeds:
      texts.append(f"{said(other, values)}, images at most {most:.3f}")
  answer, _ = all_of(answers)
  return Verdict(
    claim, answer,
    "ln of KL of scalekv over theirs below 0, over seeds and over images of"
    " each seed",
    "; ".join(texts) or "nothing was measured", ", ".join(others),
    float(np.mean(first)) if first else None, interval(first),
  )  # fmt: skip


def nearer(measured: Measured, other: str, share: float) -> list[float]:
  """PSNR of scalekv minus another's; equal images are left out."""
  psnr = [
    {s: x["psnr"] for s, x in cell(measured, share, arm).items() if x["psnr"]}
    for arm in ("scalekv", other)
  ]
  return difference(*psnr)


def saved(measured: Measured, share: float) -> list[float]:
  """Bytes of scalekv over those of the full cache."""
  mine = cell(measured, share, "scalekv")
  return [x["bytes"] / measured[s]["full"]["bytes"] for s, x in mine.items()]


def verdicts(measured: Measured) -> list[Verdict]:
  """The README's claims."""
  share = CLAIMED
  chance = [
    float(np.mean(x["kl"])) for x in cell(measured, share, "random").values()
  ]
  whole = [x["differs"] for x in measured.values() if x["differs"] is not None]
  exact: Answer = "not supported" if any(whole) else "supported"
  return [
    judged(
      "a tenth of the budget is a tenth of the bytes",
      f"bytes of the cache over those of the full one below {BAR_BYTES:g}",
      {"": (saved(measured, share), BAR_BYTES)},
      direction="below",
    ),
    better(
      measured, "attention chooses better than place or chance",
      ("latest", "random"), share,
    ),
    judged(
      "images stay nearer",
      "PSNR of scalekv minus theirs above 0 dB, same keys",
      {
        other: (nearer(measured, other, share), 0.0)
        for other in ("latest", "random")
      },
    ),
    better(
      measured, "drafters and refiners beat an even split", ("even",), share
    ),
    judged(
      "control: the cache matters",
      f"KL of random above {BAR_KL:g} nats a token",
      {"": (chance, BAR_KL)},
    ),
    Verdict(
      "control: the whole budget loses nothing",
      exact if whole else "inconclusive",
      "at a share of 1 no logit and no code differs",
      f"largest difference {max(whole):g}" if whole else "nothing was measured",
      value=max(whole) if whole else None,
    ),
  ]  # fmt: skip


# --------------------------------------------------------- tables and figures


def table(measured: Measured, shares: Sequence[float]) -> Table:
  """Every budget and arm, means over seeds."""
  rows = []
  for share in shares:
    for arm in ARMS:
      found = cell(measured, share, arm)
      if not found:
        continue
      mean = lambda name, found=found: (
        float(np.mean(values))
        if (values := [x[name] for x in found.values() if x[name] is not None])
        else None
      )
      bytes_ = [
        x["bytes"] / measured[s]["full"]["bytes"] for s, x in found.items()
      ]
      fd = [x["fd"] / measured[s]["full"]["fd"] for s, x in found.items()]
      kl = [np.mean(x["kl"]) for x in found.values()]
      rows.append({
        "budget": f"{share:g}", "arm": arm,
        "KB an image": mean("bytes") / 1000, "of full": float(np.mean(bytes_)),
        "KL, nats a token": float(np.mean(kl)),
        "agreement": mean("agreement"), "PSNR": mean("psnr"),
        "agreement at 0": mean("agreement_0"), "PSNR at 0": mean("psnr_0"),
        "FD of full's": float(np.mean(fd)),
      })  # fmt: skip
  return Table(
    "Evicted caches against the full one", rows,
    caption="Means over seeds; agreement of codes and PSNR in dB with the same"
    " keys at temperature 1 and 0, where equal images have none; FD in random"
    " convolutions to decoded test codes, over that of the full cache.",
  )  # fmt: skip


def models(done: Results, measured: Measured) -> Table:
  """Every seed's tokenizer, generator and roles."""
  runs, rows = finished(done), []
  for seed, found in sorted(measured.items()):
    score = lambda arm, name, seed=seed: (
      runs[arm, seed]["metrics"].get(f"eval/test/{name}")
      if (arm, seed) in runs
      else None
    )
    rows.append({
      "seed": seed, "PSNR of the tokenizer": score("tokenizer", "psnr"),
      "nats a token": score("generator", "nll"), "FD": found["full"]["fd"],
      "roles both halves find": found["stable"],
      "drafters": " ".join(
        ",".join(map(str, row)) for row in found["roles"][1:]
      ),
    })  # fmt: skip
  return Table(
    "Generators", rows,
    caption="Drafters are of the second scale, the third, ...",
  )  # fmt: skip


def figure(measured: Measured, shares: Sequence[float]) -> Figure | None:
  """KL against the budget, a line an arm."""
  below = sorted(share for share in shares if share < 1)
  marks: list[Any] = []
  for arm in ARMS:
    cells = {
      share: [
        max(float(np.mean(x["kl"])), LEAST)
        for x in cell(measured, share, arm).values()
      ]
      for share in below
    }
    cells = {share: values for share, values in cells.items() if values}
    if cells:
      x = list(cells)
      mean, low, high = spread(list(cells.values()))
      low = [max(a, b / 10) for a, b in zip(low, mean)]
      marks += [Band(arm, x, low, high), Line(arm, x, mean)]
  if not marks:
    return None
  axes = Axis("share of the full cache", "log"), Axis("KL, nats a token", "log")
  return Figure("kl", "What an evicted cache costs", [Panel(*axes, marks)])


def pictures(done: Results, measured: Measured) -> list[Section]:
  """The likeliest image of each class, of the first seed, by budget and arm."""
  runs = finished(done)
  if not measured or ("generator", min(measured)) not in runs:
    return []
  seed = min(measured)
  try:
    bench, _, _ = workdir.restored(runs["generator", seed]["workdir"])
    decoder = tokenizer.of(bench.source.tokenizer)
  except UserError:  # a workdir that was thrown away
    return []
  shown = {"full cache": measured[seed]["full"]["likeliest"]}
  for share, arms in measured[seed]["cells"].items():
    shown |= {f"{arm}-{share}": x["likeliest"] for arm, x in arms.items()}
  made = {
    name: decoder.decode(np.asarray(codes, np.int32)[:, None, :, None])
    for name, codes in shown.items()
  }
  tiles = [
    Picture(f"likeliest-{name.replace(' ', '-')}", name, sheet(image, 10))
    for name, image in made.items()
  ]
  return [Section("Temperature 0, a class each", pictures=tiles)]


def analyse(
  done: Results, measured: Measured, shares: Sequence[float]
) -> dict[str, Any]:
  """See `study_report.Analysis`."""
  expected = json.loads(Path(__file__).with_name("expected.json").read_text())
  published = Table("Published", expected["rows"], None, expected["source"])
  drawn = figure(measured, shares)
  return {
    "title": "ScaleKV: can a generator forget nine tenths of what it said?",
    "verdicts": verdicts(measured),
    "tables": [table(measured, shares), models(done, measured), published],
    "figures": [drawn] if drawn else [],
    "sections": pictures(done, measured),
  }
