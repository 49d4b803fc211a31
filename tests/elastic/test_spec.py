"""Specs: text and back, resolved to options of the plain family, refused."""

from fractions import Fraction

import pytest

from vitscale.core.errors import UserError
from vitscale.elastic import spec as spec_lib
from vitscale.elastic.presets import preset
from vitscale.elastic.spec import ElasticSpec, parse, resolve
from vitscale.models import vit

BIG = vit.Model(num_classes=5, width=32, depth=4, mlp_dim=64, num_heads=4)


def options(text, model=BIG):
  return resolve(parse(text), spec_lib.options_of(model))


@pytest.mark.parametrize(
  ("text", "written"),
  [
    ("ffn=1/4x6,1/2x6", "ffn=1/4x6,1/2x6"),
    ("ffn=0.5", "ffn=1/2"),
    ("ffn=25%,1,192", "ffn=1/4,1,192"),
    ("heads=1/2 ffn=1/2 embed=1/2", "ffn=1/2 heads=1/2 embed=1/2"),
    ("depth=3/4", "depth=3/4"),
    ("depth=9", "depth=9"),
    ("layers=3/4", "layers=3/4"),
    ("layers=0-4,7", "layers=0-4,7-7"),
    ("layers=2", "layers=2-2"),
    ("out=64", "out=64"),
    ("ffn=1 layers=1", "full"),
    ("full", "full"),
  ],
)
def test_text_and_back(text, written):
  spec = parse(text)
  assert str(spec) == written
  assert parse(written) == spec


def test_what_is_touched():
  assert parse("ffn=1/2 out=8").touched() == {"ffn", "out"}
  assert ElasticSpec().touched() == set()


@pytest.mark.parametrize(
  ("text", "changes", "layers"),
  [
    ("full", {}, (0, 1, 2, 3)),
    ("ffn=1/4", {"mlp_dim": 16}, (0, 1, 2, 3)),
    ("ffn=1/4x4", {"mlp_dim": 16}, (0, 1, 2, 3)),
    ("ffn=1/4x2,1x2", {"mlp_dim": (16, 16, 64, 64)}, (0, 1, 2, 3)),
    ("ffn=48", {"mlp_dim": 48}, (0, 1, 2, 3)),
    ("heads=1/2", {"num_heads": 2, "head_dim": 8}, (0, 1, 2, 3)),
    ("embed=1/2", {"width": 16, "head_dim": 8}, (0, 1, 2, 3)),
    ("embed=1/2 heads=1/2", {"width": 16, "num_heads": 2}, (0, 1, 2, 3)),
    ("depth=3/4", {"depth": 3}, (0, 1, 2)),
    ("layers=3/4", {"depth": 3}, (0, 1, 2)),
    ("layers=1/2", {"depth": 2}, (0, 2)),
    ("layers=1,3", {"depth": 2}, (1, 3)),
    ("out=8", {"out_dim": 8}, (0, 1, 2, 3)),
    ("layers=1,3 ffn=1/2,1", {"depth": 2, "mlp_dim": (32, 64)}, (1, 3)),
  ],
)
def test_options_of_the_small_model(text, changes, layers):
  assert options(text) == (changes, layers)


def test_dynabert_keeps_the_layers_of_its_code():
  """floor(i / m): of 12 layers, 3/4 drops 3, 7 and 11."""
  big = BIG.clone(depth=12)
  assert options("layers=3/4", big)[1] == (0, 1, 2, 4, 5, 6, 8, 9, 10)
  assert options("layers=1/2", big)[1] == (0, 2, 4, 6, 8, 10)


def test_a_part_of_a_part():
  """Layers of their own sizes, as a cut model has them."""
  big = BIG.clone(mlp_dim=(32, 32, 64, 64))
  assert options("ffn=1/2", big)[0] == {"mlp_dim": (16, 16, 32, 32)}
  assert options("ffn=1x2,1/2x2", big)[0] == {"mlp_dim": 32}
  assert options("layers=0,3", big)[0] == {"depth": 2, "mlp_dim": (32, 64)}
  assert options("out=1/2", BIG.clone(out_dim=16))[0] == {"out_dim": 8}
  narrower = options("embed=1/2", BIG.clone(out_dim=16))[0]
  assert narrower == {"width": 16, "out_dim": None, "head_dim": 8}


def test_unequal_layers_are_looped():
  scanned = BIG.clone(scan=True)
  assert options("ffn=1/2", scanned)[0] == {"mlp_dim": 32}
  assert options("ffn=1/2x3,1", scanned)[0]["scan"] is False
  small, layers = spec_lib.small(scanned, parse("ffn=1/2x3,1"))
  assert small.mlp_dim == (32, 32, 32, 64) and not small.scan
  assert layers == (0, 1, 2, 3)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("heads=1/3", r"heads=1/3 of 4 is 1.333, not whole: nearest 1/4 \(1\) or"),
    ("heads=1/8", r"not whole: nearest 1/4 \(1\)$"),
    ("ffn=1/3", r"nearest 21/64 \(21\) or 11/32 \(22\)"),
    ("ffn=128", "ffn=128: the model has 64"),
    ("depth=5", "deeper than the model of 4"),
    ("layers=2-4", "deeper than the model: layers are 0 to 3"),
    ("ffn=1/2x5", "deeper than the model: ffn names 5 layers, there are 4"),
    ("ffn=1/2x3", "leaves out layers of the model: ffn names 3"),
    ("depth=1/2 ffn=1x4", "ffn names 4 layers, there are 2"),
  ],
)
def test_what_does_not_fit_the_model(text, says):
  with pytest.raises(UserError, match=says):
    options(text)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("", "empty spec"),
    ("fnn=1/2", "unknown 'fnn', did you mean 'ffn'"),
    ("ffn", "'' is no part of a whole"),
    ("ffn=1/2x0", "'1/2x0' is no part"),
    ("ffn=half", "'half' is no part"),
    ("ffn=0", "above 0, at most 1"),
    ("ffn=3/2", "above 0, at most 1"),
    ("ffn=1/0", "above 0, at most 1"),
    ("ffn=1/2 ffn=1", "gives 'ffn' twice"),
    ("embed=1/2,1", "one value, not one per layer"),
    ("layers=4-2", "should rise"),
    ("layers=1,1", "should rise"),
    ("layers=a", "'a' is no layer"),
    ("depth=1/2 layers=0", "both depth and layers"),
  ],
)
def test_what_cannot_be_read(text, says):
  with pytest.raises(UserError, match=says) as error:
    parse(text)
  assert "\n" not in str(error.value)


def test_a_family_without_the_option():
  with pytest.raises(UserError, match="no 'num_heads' to cut"):
    resolve(parse("heads=1/2"), {"width": 8, "depth": 2, "mlp_dim": 16})
  with pytest.raises(UserError, match="give heads= and embed= the same part"):
    resolve(parse("heads=1/2"), {"width": 8, "depth": 2, "num_heads": 2})
  stages = {"width": (8, 16), "depth": (2, 2), "mlp_dim": (16, 32)}
  with pytest.raises(UserError, match="no 'mlp_dim' to cut"):
    resolve(parse("ffn=1/2"), stages)


# ------------------------------------------------------------------- presets


def test_presets_nest_what_their_papers_nest():
  assert preset("matvit") == ("ffn=1/8", "ffn=1/4", "ffn=1/2", "full")
  hydra = preset("hydravit")
  assert len(hydra) == 10 and hydra[0] == "ffn=1/4 heads=1/4 embed=1/4"
  assert len(preset("hydravit:6")) == 5
  assert [parse(s).ffn[0] for s in preset("scala")] == [
    Fraction(k, 4) for k in (1, 2, 3, 4)
  ]
  assert len(preset("scala:13")) == 13
  assert len(preset("dynabert")) == 12
  pool = preset("ofa:12")
  assert len(set(pool)) == len(pool) == 16 and pool == preset("ofa")


@pytest.mark.parametrize(
  ("name", "model"),
  [
    ("matvit", "Ti/16"),
    ("hydravit", "B/16"),
    ("hydravit:6", "S/16"),
    ("scala", "B/16"),
    ("dynabert", "B/16"),
    ("ofa", "B/16"),
  ],
)
def test_presets_fit_the_models_they_are_for(name, model):
  big = vit.Model(num_classes=10, **vit.variant(model))
  macs = []
  for text in preset(name):
    small, _ = spec_lib.small(big, parse(text))
    kwargs = spec_lib.options_of(small)
    macs.append(vit.flops_per_image(kwargs, (224, 224, 3)))
  assert macs[0] == min(macs) and macs[-1] == max(macs)
  assert parse(preset(name)[-1]) == ElasticSpec()


def test_hydravit_of_three_heads_is_deit_tiny():
  big = vit.Model(num_classes=10, **vit.variant("B/16"))
  small, _ = spec_lib.small(big, parse(preset("hydravit")[0]))
  assert small == vit.Model(num_classes=10, **vit.variant("Ti/16"))


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("matvti", "did you mean 'matvit'"),
    ("matvit:3", "write for example 'scala:7'"),
    ("scala:x", "write for example"),
    ("scala:1", "1 is below 2"),
  ],
)
def test_unknown_presets(text, says):
  with pytest.raises(UserError, match=says):
    preset(text)
