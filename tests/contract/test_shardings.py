"""The placement of every family is as stored; a change of it is a decision."""

import pytest

from tests.contract import shardings
from tests.contract.families import Family
from vitscale import zoo
from vitscale.core import mesh


@pytest.mark.parametrize("name", zoo.names())
def test_placement_is_as_stored(name):
  diff = shardings.difference(name)
  if diff:
    pytest.fail(
      f"{diff}\n\nThe sharding of {name} changed. If it should:\n"
      f"  {shardings.WRITE}",
      pytrace=False,
    )


def test_no_file_without_a_family():
  assert {p.stem for p in shardings.GOLDEN.iterdir()} == set(zoo.names())


def test_another_rule_shows_in_the_difference(monkeypatch):
  """The snapshot can fail: hidden units on no axis."""
  monkeypatch.setitem(mesh.RULES.params, "mlp", None)
  diff = shardings.difference("vit").splitlines()
  for sign, place in (("-", "fsdp tensor"), ("+", "fsdp -")):
    start = f"{sign}encoder/block_../mlp/up/kernel"
    found = [line for line in diff if line.startswith(start)]
    assert found and all(line.endswith(f"  {place}") for line in found), diff


def test_a_mesh_that_does_not_fit_is_in_the_text():
  text = shardings.section(
    Family("vit"), zoo.presented(zoo.family("vit"))[1], {"tensor": 2}, 64
  )
  assert "refused: params/encoder/block_00/attention/" in text
  assert "'heads' = 3 does not divide" in text
