"""ScaleKV: what is kept, how much of it, by whom; and nothing lost at 100 %."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.sampling.test_scales import LABEL, SIDES, N, generate, neck, toy
from vitscale.core.errors import UserError
from vitscale.sampling import scale_kv, scale_kv_roles
from vitscale.sampling.scale_kv import Plan, allocate

SMALL = {"window": 1, "kernel": 3, "start": 0}
HALF = Plan(((1, 1), (2, 4)), **SMALL)  # of 1 and 5 tokens
CODES = np.random.default_rng(3).integers(0, 12, (3, N)).astype(np.int32)


def drawn(*shape, seed=0):
  draw = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(draw, jnp.float32)


def said(plan=None, seed=0):
  """Logits and caches of the toy under a plan."""
  model, variables = toy()
  made, own = neck()
  return scale_kv_roles.evicted(
    model, variables, made, own, CODES, LABEL, jax.random.key(seed), plan
  )


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize(
  "side, window, want",
  [
    (1, 16, [0]),
    (2, 16, [0, 1, 2, 3]),
    (4, 4, [0, 2, 8, 10]),
    (6, 4, [7, 10, 25, 28]),
    (3, 1, [4]),
    (5, 4, [0, 3, 15, 18]),
  ],
)
def test_centroids_of_patches(side, window, want):
  np.testing.assert_array_equal(scale_kv.centroids(side, window), want)


def test_selection_by_hand():
  """Softmax, a sum over the window, a maximum over neighbours, the largest."""
  b, h, n, side, count, kernel = 2, 3, 14, 3, 6, 3
  q, k = 4 * drawn(b, side**2, h, 8), drawn(b, n, h, 8, seed=1)
  found = scale_kv.attention(None, q, k, count, window=4, kernel=kernel)
  seen = [0, 1, 3, 4]
  q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
  differs = 0
  for i in range(b):
    for j in range(h):
      raw = q[i, seen, j] @ k[i, :, j].T / 8**0.5
      share = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
      own = {n - side**2 + s for s in seen}
      score = share.sum(0)
      score[list(own)] = 0
      wide = [score[max(t - 1, 0) : t + 2].max() for t in range(n)]
      rest = sorted(set(range(n)) - own, key=lambda t: (-wide[t], t))
      want = sorted([*own, *rest[: count - len(seen)]])
      np.testing.assert_array_equal(found[i, j], want)
      logits = raw.sum(0)
      logits[list(own)] = -np.inf
      wide = [logits[max(t - 1, 0) : t + 2].max() for t in range(n)]
      rest = sorted(set(range(n)) - own, key=lambda t: (-wide[t], t))
      differs += want != sorted([*own, *rest[: count - len(seen)]])
  assert differs  # summed logits are another rule


def test_controls_keep_the_last_and_any():
  q, k = drawn(2, 4, 3, 8), drawn(2, 9, 3, 8)
  options = {"window": 4, "kernel": 3}
  last = scale_kv.latest(None, q, k, 5, **options)
  np.testing.assert_array_equal(
    last, np.broadcast_to(np.arange(4, 9), last.shape)
  )
  key = jax.random.key(0)
  any_ = np.asarray(scale_kv.random(key, q, k, 5, **options))
  assert any_.shape == (2, 3, 5)
  assert (np.diff(any_) > 0).all() and any_.min() >= 0 and any_.max() < 9
  assert len({tuple(row) for row in any_.reshape(-1, 5)}) > 3
  other = scale_kv.random(jax.random.key(1), q, k, 5, **options)
  assert np.any(any_ != other)


def test_a_window_larger_than_the_budget_is_refused():
  q, k = drawn(1, 9, 1, 8), drawn(1, 14, 1, 8)
  with pytest.raises(UserError, match="3 tokens are fewer than the window's 4"):
    scale_kv.attention(None, q, k, 3, window=4, kernel=3)


# ------------------------------------------------------------------ the cache


def test_what_is_kept_is_what_was_chosen():
  q, k, v = drawn(2, 4, 3, 8), drawn(2, 5, 3, 8), drawn(2, 5, 3, 8, seed=2)
  key = jax.random.key(0)
  keys, values = HALF.keep(1, key)(0, q, k, v)
  chosen = scale_kv.attention(None, q, k, 2, window=1, kernel=3)
  assert keys.shape == values.shape == (2, 2, 3, 8)
  for i in range(2):
    for j in range(3):
      np.testing.assert_array_equal(keys[i, :, j], k[i, chosen[i, j], j])
      np.testing.assert_array_equal(values[i, :, j], v[i, chosen[i, j], j])
  late = dataclasses.replace(HALF, start=5).keep(1, key)(0, q, k, v)
  assert late[0] is k and late[1] is v
  assert HALF.keep(2, key) is None  # nobody reads the last scale's


def test_the_whole_budget_changes_nothing():
  """Codes and logits to the bit, at any temperature."""
  model, variables = toy()
  plan = Plan(allocate(SIDES, [[0]] * 3, 2, 1.0), **SMALL)
  assert plan.capacities == ((1, 1), (5, 5))
  for options in ({}, {"guidance": 2.0, "temperature": 0.7}):
    want = generate(model, variables, **options)
    same = generate(model, variables, evict=plan, **options)
    np.testing.assert_array_equal(want, same)
  (full, caches), (logits, kept) = said(), said(plan)
  np.testing.assert_array_equal(full, logits)
  assert scale_kv_roles.held(caches) == scale_kv_roles.held(kept)


def test_less_changes_what_comes_after_and_takes_its_bytes():
  (full, before), (logits, caches) = said(), said(HALF)
  np.testing.assert_array_equal(full[:, :5], logits[:, :5])
  assert np.abs(full - logits)[:, 5:].max() > 1e-3
  assert [x.shape[1] for pair in caches[1] for x in pair] == [2, 2, 4, 4]
  each = 3 * 2 * 16 * 4  # images, heads, head_dim, bytes
  assert scale_kv_roles.held(before) == 2 * 2 * 5 * each
  assert scale_kv_roles.held(caches) == 2 * (2 + 4) * each
  model, variables = toy()
  codes, plain = (
    generate(model, variables, temperature=0, evict=e) for e in (HALF, None)
  )
  np.testing.assert_array_equal(codes[:, :5], plain[:, :5])
  assert np.any(codes != plain)


def test_eviction_is_attention_without_the_evicted():
  """The next scale's logits, from a full model whose lost keys are masked."""
  model, variables = toy(depth=1)
  made, own = neck()
  plan = Plan(((1,), (3,)), scale_kv.latest, **SMALL)
  run = functools.partial(
    scale_kv_roles.evicted, model, variables, made, own, CODES, LABEL,
    jax.random.key(0),
  )  # fmt: skip
  logits, _ = run(plan)
  _, caches = run()
  shown = made.apply({"params": own}, CODES, method="inputs")[:, 4:]
  condition = model.apply(variables, LABEL, 3, method="condition")
  cut = tuple((k[:, 2:], v[:, 2:]) for k, v in caches[1])
  want, _ = scale_kv_roles.advance(model, variables, 2, shown, condition, cut)
  np.testing.assert_allclose(logits[:, 5:], want, atol=2e-5)


def test_random_eviction_follows_the_key():
  plan = dataclasses.replace(HALF, select=scale_kv.random)
  one, same, other = (said(plan, seed)[0] for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert np.any(one != other)


# ------------------------------------------------------------------- budgets

GRIDS = (1, 2, 3, 4, 5, 6, 7, 8)
ROLES = [[0, 1]] * 4 + [[2, 3]] * 4


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.5])
def test_budgets_add_up(share):
  """sum_k (N_d B_d + N_r B_r(k)) = B L K, but for the rounding of B_d."""
  full, b = scale_kv.carried(GRIDS), round(share * 140)
  assert full == [1, 5, 14, 30, 55, 91, 140]
  rows = allocate(GRIDS, ROLES, 4, share, refiner=b - 1, decay=1)
  turns = [k for k, n in enumerate(full) if n > b]
  spent = 0
  for k, row in enumerate(rows):
    if k not in turns:
      assert row == (full[k],) * 4
      continue
    refiners = sorted(set(range(4)) - set(ROLES[k + 1]))
    fewer = b - 1 - turns.index(k)
    assert [row[i] for i in refiners] == [fewer] * 2
    assert len({row[i] for i in ROLES[k + 1]}) == 1
    spent += sum(row)
    assert max(row) <= full[k]
  missing = b * 4 * len(turns) - spent
  assert 0 <= missing < 2 * len(turns) * 2


def test_roles_are_those_of_the_scale_that_reads():
  rows = allocate(GRIDS, ROLES, 4, 0.1)
  assert rows[2] == (14,) * 4
  few, many = rows[3][:2], rows[3][2:]  # after scale 3, read by scale 4
  assert max(few) < min(many)


def test_the_paper_s_numbers():
  """13 scales of Infinity at 1024 px: 650 tokens are 10 % of those carried."""
  sides = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64)
  full = scale_kv.carried(sides)
  assert sum(s**2 for s in sides) == 10521
  assert abs(0.1 * full[-1] - 650) < 10
  rows = allocate(sides, [[0]] * 13, 2, 650 / full[-1])
  refiners = [row[1] for row in rows[-5:]]
  assert refiners == [600, 530, 460, 390, 320]
  assert rows[-1][0] + np.mean(refiners) == 2 * 650


def test_an_even_split_spends_the_same():
  rows = ((3, 4, 6), (1, 1, 1), (2, 9, 9))
  assert scale_kv.even(rows) == ((5, 4, 4), (1, 1, 1), (7, 7, 6))


@pytest.mark.parametrize(
  "options, text",
  [
    ({"share": 0.0}, r"share of 0\.0: should be in \(0, 1\]"),
    ({"refiner": 14, "decay": 5}, "refiners end with -1 tokens: use decay=4"),
    ({"refiner": 20, "decay": 0}, "leave drafters 8: use refiner=14 or less"),
    ({"drafter": 15, "refiner": 10, "decay": 0}, "use drafter=18"),
    ({"drafters": [[0]] * 8, "depth": 1}, "1 drafters of 1 layers"),
    ({"drafters": ROLES[:7]}, "want 8 rows"),
    ({"drafters": [[0, 9]] * 8}, r"layers of 0\.\.3"),
    ({"drafters": [[0, 1]] * 7 + [[0]]}, "equally many"),
  ],
)
def test_refuses_budgets(options, text):
  given = {"scales": GRIDS, "drafters": ROLES, "depth": 4, "share": 0.1}
  with pytest.raises(UserError, match=text) as error:
    allocate(**{**given, **options})
  assert "\n" not in str(error.value)


def test_refuses_plans_of_other_models():
  model, variables = toy()
  for rows in (((1, 1),), ((1,), (2,)), ((1, 1), (2, 2), (3, 3))):
    with pytest.raises(UserError, match="3 scales and 2 layers: want 2 x 2"):
      generate(model, variables, evict=Plan(rows))
  for options, text in (
    ({"capacities": ((1, 2), (3,))}, "rows of as many layers"),
    ({"capacities": ((0, 2),)}, "1 token or more"),
    ({"capacities": ((1,),), "window": 0}, "window=0: should be 1 or more"),
    ({"capacities": ((1,),), "start": -1}, "start=-1"),
  ):
    with pytest.raises(UserError, match=text):
      Plan(**options)


def test_plans_are_files(tmp_path):
  path = tmp_path / "plan.json"
  for select in scale_kv.SELECTIONS.values():
    plan = dataclasses.replace(HALF, select=select)
    scale_kv.save(plan, path)
    assert scale_kv.load(path) == plan
  good = json.loads(path.read_text())
  for changes, text in (
    ({"select": "latests"}, "'latests'.*'latest'"),
    ({"capacities": 3}, "a list of lists"),
    ({"window": 1.5}, "an integer"),
    ({"more": 1}, "is no plan"),
  ):
    path.write_text(json.dumps({**good, **changes}))
    with pytest.raises(UserError, match=text) as error:
      scale_kv.load(path)
    assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="is not there"):
    scale_kv.load(tmp_path / "none.json")
  with pytest.raises(UserError, match="is none of attention"):
    scale_kv.save(dataclasses.replace(HALF, select=len), path)


# --------------------------------------------------------------- calibration


def test_selectivity_by_hand():
  """From queries and keys that a plain loop over scales has seen."""
  model, variables = toy()
  made, own = neck()
  seen, top = {}, 2
  shown = made.apply({"params": own}, CODES, method="inputs")
  condition = model.apply(variables, LABEL, 3, method="condition")
  cache = (None,) * 2
  for k, part in enumerate([None, *jnp.split(shown, [4], 1)]):

    def keep(layer, q, keys, values, k=k):
      seen[layer, k] = np.asarray(q, np.float64), np.asarray(keys, np.float64)
      return keys, values

    _, cache = scale_kv_roles.advance(
      model, variables, k, part, condition, cache, keep
    )
  batches = [(CODES[i : i + 1], LABEL[i : i + 1]) for i in range(3)]
  found = scale_kv_roles.calibrate(
    model, variables, made, own, batches, top=top
  )
  assert found.shape == (2, 3)
  np.testing.assert_array_equal(found[:, 0], 0)
  for (layer, k), (q, keys) in seen.items():
    raw = np.einsum("bqhd,bkhd->bhqk", q, keys) / q.shape[-1] ** 0.5
    share = np.exp(raw - raw.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    past = keys.shape[1] - q.shape[1]
    best = np.sort(share[..., :past])[..., -top:].sum(-1).mean()
    want = share[..., past:].sum(-1).mean() * best
    np.testing.assert_allclose(found[layer, k], want, rtol=1e-4)
  with pytest.raises(UserError, match="a batch of codes or more"):
    scale_kv_roles.calibrate(model, variables, made, own, [])
  with pytest.raises(UserError, match="top=0"):
    scale_kv_roles.calibrate(model, variables, made, own, batches, top=0)


def test_drafters_are_the_least_selective_of_each_scale():
  found = np.array([[0.0, 0.3, 0.1], [0.0, 0.1, 0.2], [0.0, 0.2, 0.6]])
  assert scale_kv_roles.drafters(found, 1) == [[0], [1], [0]]
  assert scale_kv_roles.drafters(found, 2) == [[0, 1], [1, 2], [0, 1]]
  z = scale_kv_roles.zscores(found)
  np.testing.assert_array_equal(z[:, 0], 0)
  np.testing.assert_allclose(z[:, 1:].mean(0), 0, atol=1e-12)
  np.testing.assert_allclose(z[:, 1:].std(0), 1)
