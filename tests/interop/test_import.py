"""`vitscale import` and `export`: workdirs of somebody's weights, and back."""

import json
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vitscale as vs
from tests.interop.test_layouts import golden
from vitscale import cli, train, workdir
from vitscale.core import tree
from vitscale.core.checkpoint import CheckpointStore
from vitscale.core.errors import UserError
from vitscale.core.log import read_json, write_json
from vitscale.elastic.cut import cut
from vitscale.interop import exporter, importer, safetensors
from vitscale.models import vit
from vitscale.nn import patch as patch_lib

PROCESSOR = {
  "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3],
  "do_center_crop": True, "size": {"shortest_edge": 10},
  "crop_size": {"height": 8, "width": 8},
}  # fmt: skip


def folder(case, where):
  """A case as Hugging Face or timm would have stored it."""
  weights, state, want, image = golden(case)
  where.mkdir(parents=True)
  safetensors.write(where / "model.safetensors", state)
  write_json(where / "config.json", weights.config)
  return state, want, image


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
  """A folder of Hugging Face's ViT with its preprocessing."""
  where = tmp_path_factory.mktemp("theirs") / "vit"
  folder("hf_vit", where)
  write_json(where / "preprocessor_config.json", PROCESSOR)
  return where


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
  """It, imported."""
  out = tmp_path_factory.mktemp("ours") / "run"
  assert cli.main(["import", str(theirs), "--out", str(out)]) == 0
  return out


def test_a_workdir_like_any_other(ours):
  _, _, want, image = golden("hf_vit")
  model, variables = vs.load(ours)
  y, _ = jax.jit(model.apply)(variables, image)
  np.testing.assert_allclose(y, want, atol=1e-4)
  run = read_json(ours / "run.json")
  assert run["config"]["task"]["mean"] == PROCESSOR["image_mean"]
  (group,) = run["config"]["evals"].values()
  assert group["transform"] == "resize_small(10)|central_crop(8)"
  assert run["imported"]["layout"] == "hf_vit"
  assert run["law_variables"]["flops"] is None
  assert [row["status"] for row in workdir.runs(ours.parent)] == ["finished"]
  # What isn't weights is as a fresh run has it.
  bench, _, step = workdir.restored(ours)
  state, _ = CheckpointStore(ours / "checkpoints").restore(bench.abstract)
  fresh = bench.init(np.uint32(0))
  assert step == 0
  for name in set(state) - {"params"}:
    jax.tree.map(np.testing.assert_array_equal, state[name], fresh[name])


def test_cut_and_fine_tune_take_it(ours, tmp_path):
  part = cut(ours, tmp_path / "half", spec="ffn=1/2", by="importance")
  assert part["out"] == str(tmp_path / "half")
  model, _ = vs.load(tmp_path / "half")
  assert model.mlp_dim == 12
  config = read_json(ours / "run.json")["config"]
  config["model"]["num_classes"] = 3
  config["data"] |= {"classes": 3, "n": 8}
  config |= {"batch_size": 4, "init": {"from": str(ours), "skip": "head/.*"}}
  config["optim"]["lr"] = 0.01
  result = train.train(config, tmp_path / "tuned")
  assert result["status"] == "finished"
  _, before = vs.load(ours)
  _, after = vs.load(tmp_path / "tuned")
  assert after["params"]["head"]["kernel"].shape == (16, 3)
  old, new = (v["params"]["embed"]["bias"] for v in (before, after))
  np.testing.assert_allclose(new, old, atol=0.1)


def test_eval_takes_classes_by_number(ours, tmp_path, capfd):
  """Folders in alphabetical order; another count is refused."""
  rng = np.random.default_rng(0)
  for i in range(6):
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), "uint8"))
    (tmp_path / f"n{i}").mkdir()
    image.save(tmp_path / f"n{i}" / "a.png")
  err = complaint(capfd, "eval", ours, "--data", tmp_path)
  assert "the data have 6 classes" in err
  (tmp_path / "n5" / "a.png").unlink()
  (tmp_path / "n5").rmdir()
  args = ["eval", str(ours), "--data", str(tmp_path), "--json"]
  assert cli.main(args) == 0
  found = json.loads(capfd.readouterr().out)
  assert found["metrics"]["accuracy"]["n"] == 5
  assert found["data"]["transform"] == "resize_small(10)|central_crop(8)"


def test_hugging_face_round_trip(ours, theirs, tmp_path):
  exporter.export(ours, tmp_path / "hf", "hf")
  was = safetensors.read(theirs / "model.safetensors")
  now = safetensors.read(tmp_path / "hf" / "model.safetensors")
  assert set(now) == set(was)
  for name, x in was.items():
    np.testing.assert_array_equal(now[name], x, err_msg=name)
  old, new = (read_json(p / "config.json") for p in (theirs, tmp_path / "hf"))
  for key in ("hidden_size", "layer_norm_eps", "hidden_act", "image_size"):
    assert new[key] == old[key]
  said = read_json(tmp_path / "hf" / "preprocessor_config.json")
  assert said["image_mean"] == PROCESSOR["image_mean"]
  assert said["size"] == PROCESSOR["size"]
  assert said["crop_size"] == PROCESSOR["crop_size"]


@pytest.mark.parametrize(
  "case", ["dinov2_registers", "dinov2_swiglu", "siglip", "hf_deit"]
)
def test_others_through_a_workdir(case, tmp_path):
  """Bits out as they came in; DeiT has no way back, its token says why."""
  state, want, image = folder(case, tmp_path / "in")
  importer.bring(tmp_path / "in", tmp_path / "run")
  model, variables = vs.load(tmp_path / "run")
  y, _ = jax.jit(model.apply)(variables, image)
  np.testing.assert_allclose(y, want, atol=1e-4)
  if case == "hf_deit":
    with pytest.raises(UserError, match="no registers without layer_scale"):
      exporter.export(tmp_path / "run", tmp_path / "out", "hf")
    assert not (tmp_path / "out").exists()
    return
  exporter.export(tmp_path / "run", tmp_path / "out", "hf")
  back = safetensors.read(tmp_path / "out" / "model.safetensors")
  back = {k.removeprefix("vision_model."): v for k, v in back.items()}
  assert set(back) == set(state)
  for name in set(state) - {"embeddings.mask_token"}:  # not ours to keep
    np.testing.assert_array_equal(back[name], state[name], err_msg=name)
  config = read_json(tmp_path / "in" / "config.json")
  for key in ("num_register_tokens", "use_swiglu_ffn", "model_type"):
    said = read_json(tmp_path / "out" / "config.json")
    assert said.get(key) == config.get(key)


def test_another_patch_size_and_head(theirs, tmp_path):
  """Resized as the model itself would at run time."""
  weights, _, _, _ = golden("hf_vit")
  result = importer.bring(theirs, tmp_path / "run", patch=8, size=24, classes=0)
  assert (result["head"], result["image"]) == ("dropped", [24, 24, 3])
  model, variables = vs.load(tmp_path / "run")
  assert (model.patch_size, model.num_classes) == (8, 0)
  p = variables["params"]
  assert p["positions"]["table"].shape == (3, 3, 16) and "head" not in p
  kernel = weights.read("vit.embeddings.patch_embeddings.projection.weight")
  kernel = jnp.asarray(kernel.transpose(2, 3, 1, 0).reshape(-1, 16))
  np.testing.assert_allclose(
    p["embed"]["kernel"], patch_lib.resize_kernel(kernel, 4, 8), atol=1e-6
  )
  again = importer.bring(theirs, tmp_path / "same", size=8, patch=4)
  assert again["head"] == "kept"


def test_npz_and_trusted_pickles(tmp_path):
  _, state, want, image = golden("bv_map")
  np.savez(tmp_path / "bv.npz", **state)
  result = importer.bring(
    tmp_path / "bv.npz", tmp_path / "run", size=8, classes=4
  )
  assert (result["layout"], result["head"]) == ("big_vision", "new")
  model, variables = vs.load(tmp_path / "run")
  y, out = jax.jit(model.apply)(variables, image)
  np.testing.assert_allclose(out["pre_logits"], want, atol=1e-4)
  assert y.shape == (2, 4) and not y.any()


def test_shards_and_half_precision(tmp_path):
  """Two files and an index; bfloat16 is read."""
  state, want, image = folder("siglip", tmp_path / "in")
  names = sorted(state)
  where = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}
  for file in set(where.values()):
    part = {n: state[n].astype("f2") for n in names if where[n] == file}
    safetensors.write(tmp_path / "in" / file, part)
  (tmp_path / "in" / "model.safetensors").unlink()
  write_json(
    tmp_path / "in" / "model.safetensors.index.json", {"weight_map": where}
  )
  importer.bring(tmp_path / "in", tmp_path / "run")
  model, variables = vs.load(tmp_path / "run")
  y, _ = jax.jit(model.apply)(variables, image)
  np.testing.assert_allclose(y, want, atol=1e-4)


def test_bfloat16_is_read(tmp_path):
  x = np.array([1.5, -2.0, 0.0078125], np.float32)
  head = {"a": {"dtype": "BF16", "shape": [3], "data_offsets": [0, 6]}}
  text = json.dumps(head).encode()
  bits = (x.view("u4") >> 16).astype("<u2").tobytes()
  path = tmp_path / "x.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text + bits)
  np.testing.assert_array_equal(safetensors.read(path)["a"].astype("f4"), x)


def test_stablehlo_runs_without_vitscale(ours, tmp_path):
  """In a process that can't import it, at two batch sizes."""
  pytest.importorskip("flatbuffers")
  exporter.export(ours, tmp_path / "hlo", "stablehlo")
  image = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), "uint8")
  np.save(tmp_path / "image.npy", image)
  code = """
import sys
sys.modules["vitscale"] = None
import jax.export, numpy as np
run = jax.export.deserialize(open("hlo/model.stablehlo", "rb").read()).call
weights, image = dict(np.load("hlo/weights.npz")), np.load("image.npy")
np.savez("y.npz", three=run(weights, image), one=run(weights, image[:1]))
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  bench, variables, _ = workdir.restored(ours)
  want, _ = jax.jit(bench.model.apply)(variables, bench.task.normalise(image))
  with np.load(tmp_path / "y.npz") as y:
    np.testing.assert_allclose(y["three"], want, atol=1e-5)
    np.testing.assert_allclose(y["one"], want[:1], atol=1e-5)
  says = (tmp_path / "hlo" / "README.md").read_text()
  assert "resize_small(10)|central_crop(8)" in says and "logits" in says


# ------------------------------------------------------------------ bad input


def wrong(case, tmp_path, change):
  """A folder of a case whose state went through `change`."""
  folder(case, tmp_path / "in")
  state = safetensors.read(tmp_path / "in" / "model.safetensors")
  safetensors.write(tmp_path / "in" / "model.safetensors", change(state))
  return tmp_path / "in"


def complaint(capfd, *args):
  """The one line of a command that should fail."""
  assert cli.main([str(a) for a in args]) == 2
  err = capfd.readouterr().err.strip()
  assert len(err.splitlines()) == 1
  return err


def test_names_and_shapes_that_differ(tmp_path, capfd):
  def change(state):
    state["vit.encoder.layer.1.output.bias"] = state.pop(
      "vit.encoder.layer.1.output.dense.bias"
    )
    state["classifier.bias"] = state["classifier.bias"][:3]
    return state

  path = wrong("hf_vit", tmp_path, change)
  err = complaint(capfd, "import", path, "--out", tmp_path / "run")
  assert "-encoder.layer.1.output.bias float32[16]" in err
  assert "+encoder.layer.1.output.dense.bias float32[16]" in err
  assert "~classifier.bias float32[3] -> float32[5]" in err
  assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_another_family_names_the_nearest(tmp_path, capfd):
  x = np.zeros((4, 3, 2, 2), np.float32)
  names = ("embeddings.patch_embeddings.projection.weight",
           "encoder.layers.0.blocks.0.attention.self.query.weight")  # fmt: skip
  (tmp_path / "swin").mkdir()
  safetensors.write(
    tmp_path / "swin" / "model.safetensors", {f"swin.{n}": x for n in names}
  )
  write_json(tmp_path / "swin" / "config.json", {"model_type": "swin"})
  err = complaint(capfd, "import", tmp_path / "swin", "--out", tmp_path / "run")
  assert "of family 'swin'" in err and "nearest: " in err
  assert not (tmp_path / "run").exists()


def test_class_counts(theirs, tmp_path, capfd):
  out = ("--out", tmp_path / "run")
  err = complaint(capfd, "import", theirs, *out, "--classes", 7)
  assert "the head has 5 classes, not 7" in err
  strokes = ("data.source=strokes", "data.size=8", "data.n=64")
  err = complaint(capfd, "import", theirs, *out, *strokes)
  assert "classes, the head 5" in err
  assert list(tmp_path.iterdir()) == []


def test_files_that_are_none(theirs, ours, tmp_path, capfd):
  out = ("--out", tmp_path / "run")
  pickle = pathlib.Path(__file__).parents[1] / "golden" / "torch_zip.pth"
  err = complaint(capfd, "import", pickle, *out)
  assert "is a pickle, safetensors is expected" in err and "--trust" in err
  err = complaint(capfd, "import", pickle, *out, "--trust")
  assert "of no layout that is read" in err
  cut_short = tmp_path / "short.safetensors"
  cut_short.write_bytes((theirs / "model.safetensors").read_bytes()[:-5])
  err = complaint(capfd, "import", cut_short, *out)
  assert "is no whole safetensors file" in err
  with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
    file.writestr("a.npy", b"nothing")
  err = complaint(capfd, "import", tmp_path / "a.npz", *out)
  assert "is no whole npz file" in err
  assert "no file or folder" in complaint(capfd, "import", "absent", *out)
  assert "no weights" in complaint(capfd, "import", ours, *out)
  err = complaint(capfd, "import", theirs, "--out", ours)
  assert "is not an empty folder" in err
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("to", "model", "says"),
  [
    ("timm", {"norm_eps": 1e-12}, "no norm_eps 1e-12"),
    ("timm", {"position": "rope2d"}, "no position 'rope2d'"),
    ("hf", {"pool": "mean"}, "no pool 'mean'"),
    ("hf", {"pool": "cls", "qk_norm": True}, "no qk_norm"),
    ("hf", {"pool": "cls", "layer_scale": 1.0}, "no head on the class token"),
    ("hf", {"pool": "map"}, "no head behind attention pooling"),
  ],
)
def test_no_peer(to, model, says):
  """The option to blame is named."""
  base = {"num_classes": 5, "width": 16, "depth": 2, "mlp_dim": 32,
          "num_heads": 2, "patch_size": 4}  # fmt: skip
  made = vit.Model(**{**base, **model})
  image = np.zeros((1, 8, 8, 3), np.float32)
  shapes = jax.eval_shape(made.init, jax.random.key(0), image)
  params = jax.tree.map(lambda x: np.zeros(x.shape, "f4"), shapes)["params"]
  flat = {k.removesuffix("/value"): v for k, v in tree.flatten(params).items()}
  with pytest.raises(UserError, match=says):
    exporter.FORMATS[to](
      made, {"params": tree.unflatten(flat)}, None, (8, 8, 3)
    )


def test_export_of_no_run(tmp_path, ours, capfd):
  out = ("--out", tmp_path / "x")
  err = complaint(capfd, "export", ours, "--to", "tim", *out)
  assert "did you mean 'timm'" in err
  err = complaint(capfd, "export", tmp_path, "--to", "timm", *out)
  assert "is not a run" in err
