"""vitok: the README's design, and claims that can be lost."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from vitscale import study as study_lib
from vitscale.bench import build
from vitscale.core.config import load_module
from vitscale.core.errors import UserError

FOLDER = Path(__file__).parents[2] / "experiments" / "vitok"


@pytest.fixture(scope="module")
def study():
  return load_module(FOLDER / "study.py")


def pilots(study, scale, **errors):
  """Results of pilots; `errors` by "FAMILY/RATE", else 1."""
  return {
    run.name: {
      "status": "finished",
      "law_variables": dict(run.law_variables),
      "metrics": {
        "eval/scored/mse": errors.get(
          "{family}/{lr:g}".format(**run.law_variables),
          1.0 + run.law_variables["lr"],
        )
      },
    }
    for run in study.pilots(study.SCALES[scale])
  }


# --------------------------------------------------------------------- design


def test_pilots_come_first_and_choose_each_familys_rate(study):
  first = study.runs("cpu", {})
  assert all(run.name.startswith("pilot-") and run.may_fail for run in first)
  assert {run.config.evals.scored.split for run in first} == {"val"}
  done = pilots(study, "cpu", **{"p4/0.006": 0.1, "grid-1-4/0.003": 0.1,
                                 "shuffled-p8/0.003": 0.1})  # fmt: skip
  rest = study.runs("cpu", done)[len(first) :]
  rate = {r.law_variables["arm"]: r.config.optim.lr for r in rest}
  assert {v for k, v in rate.items() if k.startswith("p4")} == {0.006}
  assert rate["grid-1-4"] == rate["shuffled-p8-e72"] == 0.003
  assert rate["p8-e72"] == rate["grid-4-4"] == 0.0015
  assert {run.config.evals.scored.split for run in rest} == {"test"}
  assert not {r.config.seed for r in first} & {r.config.seed for r in rest}


def test_the_readme_counts_the_runs(study):
  text = (FOLDER / "README.md").read_text()
  for scale in study.SCALES:
    count = len(study.runs(scale, pilots(study, scale)))
    row = next(x for x in text.splitlines() if x.startswith(f"| `{scale}` |"))
    assert f"| {count} |" in row, (scale, count)


def test_cells_are_crossed_and_the_latent_has_e_floats(study):
  for name, scale in study.SCALES.items():
    cells = [arm for arm in study.arms(scale) if arm.kind == "cell"]
    pairs = {(arm.patch, arm.floats) for arm in cells}
    assert len(pairs) == len(scale.patches) * len(scale.floats) == len(cells)
    for arm in study.arms(scale):
      model = study.model(scale, arm)
      code = int(re.fullmatch(r"plain\((\d+)\)", model["bottleneck"])[1])
      assert code * (scale.size // arm.patch) ** 2 == arm.floats, (name, arm)
      assert code < scale.width  # else a token, not E, is the bottleneck
  assert (
    len(study.SCALES["cpu"].patches) * len(study.SCALES["cpu"].floats) == 12
  )


def test_an_e_that_no_token_can_carry_is_refused(study):
  scale = study.SCALES["cpu"]
  for patch, floats in ((8, 100), (12, 576)):  # no whole number; 144 of 96
    arm = study.Arm(f"p{patch}", patch, floats, (2, 4), "cell")
    with pytest.raises(UserError, match="does not suit"):
      study.model(scale, arm)


def test_arms_differ_in_what_they_say(study):
  scale = study.SCALES["cpu"]
  made = {
    arm.name: study.config(
      scale, arm, lr=1e-3, seed=0, split="test", steps=scale.steps
    ).to_dict()
    for arm in study.arms(scale)
  }
  plain, mixed = made["p8-e72"], made["shuffled-p8-e72"]
  assert mixed["data"].pop("permute_seed") == study.SHUFFLE
  assert plain == mixed
  small, large = made["grid-1-4"], made["grid-4-4"]
  assert small["model"].pop("encoder_depth") == 1
  assert large["model"].pop("encoder_depth") == 4
  assert small == large
  bench = build(study.config(
    scale, study.arms(scale)[0], lr=1e-3, seed=0, split="val", steps=2
  ))  # fmt: skip
  assert bench.model.decoder_depth == 4


# ----------------------------------------------------------------- yardsticks


def table(noise=0.0, patch=0.0, seeds=3, misfit=0.0):
  """E, p and a metric of 2 for a doubling, and a patch's own."""
  rng = np.random.default_rng(1)
  cells = [(e, p) for e in (36, 72, 144, 288) for p in (4, 8, 12)]
  rows = [(e, p) for e, p in cells for _ in range(seeds)]
  floats, patches = np.array(rows, float).T
  x = np.log2(floats) - np.log2(36) - 1.5
  y = 2 * x + 0.3 * x**2 + misfit * x**3 + patch * (patches == 4)
  return y + noise * rng.standard_normal(len(y)), floats, patches


def test_shares_are_those_of_a_known_design(study):
  y, floats, patch = table(noise=0.01, patch=1.0)
  found = study.yardsticks.shares(y, floats, patch, np.ones(len(y)))
  assert found["E"] > 0.999 and found["p"] > 0.99
  assert found["curve"] == pytest.approx(0.3, abs=0.01)
  # Orthogonal designs: p's share of all is its own variance over all of it.
  own = np.var((patch == 4) * 1.0)
  assert found["p of all"] == pytest.approx(own / np.var(y), rel=0.02)
  counted = study.yardsticks.shares(
    np.append(y, y[0]), np.append(floats, 36), np.append(patch, 4),
    np.ones(len(y) + 1),
  )  # fmt: skip
  weight = np.ones(len(y))
  weight[0] = 2
  weighed = study.yardsticks.shares(y, floats, patch, weight)
  assert weighed == pytest.approx(counted)


def test_too_few_levels_tell_nothing(study):
  y, floats, patch = table(noise=0.01)
  keep = (patch == 4) & (floats < 100)
  found = study.yardsticks.shares(
    y[keep], floats[keep], patch[keep], np.ones(keep.sum())
  )
  assert math.isnan(found["p"]) and math.isnan(found["curve"])
  assert found["E"] > 0.9


def test_runs_are_drawn_within_cells(study):
  names = ("PSNR", "floats", "patch")
  rows = lambda **k: [dict(zip(names, r)) for r in zip(*table(**k))]
  draw = lambda rows: study.yardsticks.bootstrapped(rows, "PSNR", 200)
  value, (low, high) = draw(rows(noise=0.5))["E"]
  assert low < value < high and high - low > 0.005
  tight = draw(rows(noise=0.05))["E"][1]
  assert tight[1] - tight[0] < high - low
  assert draw(rows(noise=0.5, seeds=1))["E"][1] is None
  assert draw([]) == {}


def test_pca_of_whole_images_does_not_see_a_shuffle(study):
  """README: orthogonal maps leave the best linear code as it is."""
  rng = np.random.default_rng(0)
  smooth = np.cumsum(rng.standard_normal((300, 8, 8)), 2) / 30 + 0.5
  order = rng.permutation(64)
  mixed = smooth.reshape(300, 64)[:, order].reshape(300, 8, 8)
  score = lambda x, p: study.yardsticks.linear_psnr(x[:200], x[200:], p, 16)
  assert score(smooth, 8) == pytest.approx(score(mixed, 8), abs=1e-6)
  assert score(smooth, 8) > score(smooth, 4) > score(mixed, 4) + 1


def test_pca_is_exact_where_the_rank_allows(study):
  rng = np.random.default_rng(0)
  low = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 64)) / 9 + 0.5
  images = low.reshape(200, 8, 8)
  score = lambda e: study.yardsticks.linear_psnr(images, images, 8, e)
  assert score(3) == pytest.approx(90) and score(2) < 40


# --------------------------------------------------------------------- claims


def results(study, psnr, *, seeds=(0, 1, 2), noise=0.004):
  """Finished runs of `cpu` whose PSNR is `psnr(arm, x)`, x of log2 E."""
  rng, done = np.random.default_rng(0), {}
  for arm in study.arms(study.SCALES["cpu"]):
    x = math.log2(arm.floats / 36) - 1.5
    for seed in seeds:
      value = psnr(arm, x) + noise * rng.standard_normal()
      done[f"{arm.name}-s{seed}"] = {
        "status": "finished",
        "law_variables": {
          "arm": arm.name, "seed": seed, "lr": 0.003, "kind": arm.kind,
          "patch": arm.patch, "floats": arm.floats, "encoder": arm.depths[0],
          "decoder": arm.depths[1],
        },
        "metrics": {
          "eval/scored/psnr": value, "eval/scored/ssim": value / 40,
          "eval/scored/rfd_random_conv": 2 ** (-value / 2),
          "eval/scored/rfd_random_conv_floor": 0.01, "flops": 1e12,
        },
      }  # fmt: skip
  return done


def linear(study, psnr):
  scale = study.SCALES["cpu"]
  return {(p, e): psnr for p in scale.patches for e in scale.floats}


def good(arm, x):
  """All claims hold."""
  if arm.kind == "grid":
    encoder, decoder = (math.log2(depth) for depth in arm.depths)
    return 26 + 0.02 * encoder + 0.15 * decoder
  if arm.kind == "shuffled":
    return 18 + arm.patch / 8
  return 25 + 2 * x + 0.4 * x**2 + 0.2 * x**3


def bad(arm, x):
  """All claims are lost."""
  if arm.kind == "grid":
    encoder, decoder = (math.log2(depth) for depth in arm.depths)
    return 26 + 0.15 * encoder + 0.02 * decoder
  if arm.kind == "shuffled":
    return 18
  return 25 + arm.patch / 4 + 0.1 * (arm.patch - 8) * x - 0.1 * x**2


@pytest.mark.parametrize(
  "psnr, pca, answer",
  [(good, 15.0, "supported"), (bad, 40.0, "not supported")],
)
def test_claims_can_be_won_and_lost(study, psnr, pca, answer):
  found = study.analysis.verdicts(results(study, psnr), linear(study, pca))
  assert [v.verdict for v in found] == [answer] * 7
  warned = ["training may limit" in v.control for v in found]
  assert warned == [answer != "supported"] * 4 + [False] * 3


def test_noise_one_seed_and_nothing_decide_nothing(study):
  known = linear(study, 25.0)
  for done in (results(study, good, seeds=(0,)), {}):
    found = study.analysis.verdicts(done, known)
    assert {v.verdict for v in found} == {"inconclusive"}
  noisy = results(study, lambda arm, x: 25.3, noise=1.5)
  found = study.analysis.verdicts(noisy, known)
  assert {found[i].verdict for i in (2, 3, 4, 5, 6)} == {"inconclusive"}
  none = study.analysis.verdicts({}, known)
  assert all("nothing" in v.measured for v in none)
  few = {k: v for k, v in results(study, good).items() if "grid-1" in k}
  study.analysis.analyse(few, known)  # missing arms are no error


def test_a_wide_interval_is_no_answer_about_the_decoder(study):
  """The bar of .14 dB: a large but noisy effect stays open."""
  large = lambda arm, x: 26 + 5.0 * math.log2(arm.depths[1])
  done = results(study, large, noise=0.3)
  verdict = study.analysis.verdicts(done, linear(study, 15.0))[4]
  assert verdict.ci[0] > 0 and verdict.ci[1] - verdict.ci[0] > 0.14
  assert verdict.verdict == "inconclusive"


def test_effects_are_a_doublings(study):
  """1 to 4 layers are two doublings; an interaction is in neither."""
  psnr = lambda arm, x: (
    0.3 * math.log2(arm.depths[0])
    + 0.1 * math.log2(arm.depths[1])
    + 0.5 * (arm.depths == (1, 1))
    + 0.5 * (arm.depths == (4, 4))
  )
  rows = study.analysis.of_kind(results(study, psnr, noise=0.0), "grid")
  encoder, decoder = study.analysis.effects(rows)
  assert encoder == pytest.approx([0.3] * 3)
  assert decoder == pytest.approx([0.1] * 3)


def test_the_published_sweep_misses_the_bar_as_the_readme_says(study):
  expected = json.loads((FOLDER / "expected.json").read_text())
  rows = study.analysis.refit(expected).rows[:3]
  assert [row["E"] for row in rows] == [0.983, 0.985, 0.946]
  assert [round(row["p"], 2) for row in rows] == [0.1, 0.5, 0.05]
  text = (FOLDER / "README.md").read_text()
  assert "[.983, .985, .946 of rFID]" in text and "[.10, .50, .05]" in text


def test_tables_and_figures(study):
  done = results(study, good)
  known = linear(study, 20.0)
  page = study.analysis.analyse(done, known)
  rows = {row["arm"]: row for row in page["tables"][0].rows}
  assert rows["p8-e144"]["PSNR"] == pytest.approx(26.12, abs=0.02)
  assert rows["p8-e144"]["PCA of patches"] == 20
  assert rows["shuffled-p8-e72"]["PCA of patches"] is None
  floats, grid = page["figures"]
  assert len(floats.panels) == 3
  assert {m.group for m in floats.panels[0].marks} == {
    "p = 4", "p = 8", "p = 12"
  }  # fmt: skip
  assert {m.group for m in grid.panels[0].marks} == {
    "encoder of 1", "encoder of 4"
  }  # fmt: skip


@pytest.mark.slow
def test_smoke(tmp_path):
  result = study_lib.run_study("vitok", scale="smoke", out=tmp_path / "out")
  assert result["status"] == "finished", result["errors"]
  rows = {row["arm"]: row for row in result["tables"][0]["rows"]}
  assert rows["p8-e36"]["PSNR"] > 8 and len(rows) == 9
