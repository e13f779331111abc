"""A run as one folder: it predicts where none of our code can be imported, and a changed file of it is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featurecache.errors import BackboneError, ConfigError, RunError, WeightsError
from pipelines import export
from pipelines.export import ExportConfig, run
from pipelines.exporting import onnx_file, proving, standalone
from pipelines.exporting.proving import ALONE, evidence_of, proved
from pipelines.predicting.predictor import Predictor
from pipelines.train_online import run as train_online
from tests.pipelines.exporting.here import said_here
from tests.pipelines.online_samples import online, photos
from tests.pipelines.pictures import CLASSES, picture, pictures, place_with_runs


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with pictures, their store, two runs, and `linear-out` and `lfa-out`, the runs exported."""
    place = place_with_runs(tmp_path_factory.mktemp("export"), linear={"epochs": 60, "lr": 0.01}, lfa={"epochs": 2})
    for head, said in (("linear", proving._said), ("lfa", said_here)):  # in a fresh process, and here
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(proving, "_said", said)
            report = run(ExportConfig(run_folder=place / head, out=place / f"{head}-out"))
        assert report.record["proof"]["images"] == 16
    pictures(place / "new", dict.fromkeys(CLASSES, 3), first=90)
    return place


def alone(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the folder's script in a fresh process in which importing us fails."""
    call = [sys.executable, "-I", "-c", ALONE, str(folder / "predict.py"), *map(str, arguments)]
    return subprocess.run(call, capture_output=True, text=True, check=False, cwd=folder.parent)


@pytest.fixture
def copied(place, tmp_path) -> Path:
    return Path(shutil.copytree(place / "linear-out", tmp_path / "copied"))


@pytest.mark.parametrize("head", ["linear", "lfa"])
def test_a_folder_alone_says_of_jpeg_files_what_the_run_says(place, head):
    record = json.loads((place / f"{head}-out/record.json").read_text())

    done = alone(place / f"{head}-out", "--json", place / "new")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    predictor = Predictor.load(place / head)
    paths = sorted((place / "new").rglob("*.jpg"))
    assert [entry["image"] for entry in found] == [str(path) for path in paths]
    assert [entry["answer"] for entry in found] == [p.answer for p in predictor.predict(paths)]
    probabilities = np.array([[entry["top"][name] for name in predictor.class_names] for entry in found])
    np.testing.assert_allclose(probabilities, predictor.predict_proba(paths), atol=1e-4)
    assert record["proof"]["largest_difference"] <= record["proof"]["tolerance"] < 0.1
    assert record["proof"]["labels_equal"] == record["proof"]["labels_equal_to_stored"] == 16


@pytest.fixture(scope="module")
def trained_online(tmp_path_factory) -> Path:
    """A folder with pictures and `full`, a run that trained its backbone on them."""
    place = tmp_path_factory.mktemp("online")
    photos(place / "photos", each=12)
    train_online(online(place / "photos", place / "full", peft="full", backbone_lr=1e-3, epochs=1))
    return place


@pytest.fixture
def _here(monkeypatch):
    monkeypatch.setattr(proving, "_said", said_here)


@pytest.mark.usefixtures("_here")
def test_a_run_that_trained_its_backbone_is_exported_with_what_it_trained(trained_online, tmp_path):
    run_folder, out = trained_online / "full", tmp_path / "out"

    record = run(ExportConfig(run_folder=run_folder, out=out)).record

    learned, held = load_file(run_folder / "backbone.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(held[f"backbone.{name}"], value) for name, value in learned.items())
    assert record["proof"]["of"] == "images of rows the run has predicted"
    assert record["proof"]["largest_difference_to_stored"] < 1e-4
    card = (out / "README.md").read_text()
    assert f"A backbone of which {sum(v.numel() for v in learned.values()):,} values were trained" in card
    trainable = sum(v.numel() for v in learned.values()) + 3 * (64 + 1)
    assert f" parameters, {trainable:,} of them trainable" in card
    assert "'peft': 'full'" in card and str(trained_online) not in card


@pytest.mark.usefixtures("_here")
def test_a_run_that_trained_only_a_head_online_is_exported_too(trained_online, tmp_path):
    train_online(online(trained_online / "photos", tmp_path / "run", peft="linear", epochs=1))

    record = run(ExportConfig(run_folder=tmp_path / "run", out=tmp_path / "out")).record

    assert record["proof"]["labels_equal_to_stored"] == record["proof"]["images"]
    assert "A frozen backbone" in (tmp_path / "out/README.md").read_text()


def test_images_of_an_online_run_that_are_gone_are_named_with_data(trained_online, tmp_path):
    settings, record = (json.loads((trained_online / "full" / n).read_text()) for n in ("config.json", "record.json"))
    moved = {**settings, "data": str(tmp_path / "gone")}

    drawn = evidence_of(trained_online / "full", moved, record, None)
    named = evidence_of(trained_online / "full", moved, record, str(trained_online / "photos"))

    assert drawn.what.startswith("drawn pictures: the images of the run are not at hand") and drawn.stored is None
    assert named.what == "images of rows the run has predicted"


def test_what_goes_into_onnx_of_a_half_precision_run_is_what_it_trained(trained_online, tmp_path):
    config = ExportConfig(run_folder=tmp_path / "run", out=tmp_path / "out", onnx=True)
    train_online(online(trained_online / "photos", tmp_path / "run", peft="full", precision="bf16", epochs=1))

    program = export._for_onnx(config, Predictor.load(tmp_path / "run"), None)

    learned = load_file(tmp_path / "run/backbone.safetensors")
    assert all(torch.equal(program.state_dict[f"backbone.{name}"], value) for name, value in learned.items())


def test_a_graph_of_one_image_is_given_one_at_a_time(copied, place):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "batch": 1}))
    export.write_sums(copied)
    model = standalone.Model.load(copied)
    seen, run_one = [], model.run
    model.run = lambda images: seen.append(len(images)) or run_one(images)

    logits = model.logits(sorted((place / "new").rglob("*.jpg")))

    assert seen == [1] * 9 and logits.shape == (9, 3)
    assert config["batch"] is None


def test_the_script_runs_as_a_user_types_it_and_from_python(place):
    folder, one = place / "linear-out", place / "new/red/90.jpg"

    typed = subprocess.run(
        [sys.executable, "predict.py", str(one), "--topk", "2"], cwd=folder, capture_output=True, text=True, check=True
    )
    called = standalone.Model.load(folder).predict([picture("red", 90)], topk=1)

    assert typed.stdout.split()[1] == "red" and len(typed.stdout.split()) == 6
    assert called[0]["answer"] == "red" and list(called[0]["top"]) == ["red"]


@pytest.mark.parametrize(
    "name", ["predict.py", "config.json", "model.py", "model.safetensors", "README.md", "record.json"]
)
def test_a_changed_file_is_refused_by_name(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)

    with pytest.raises(standalone.Refused, match=rf"{name} is not what was exported"):
        standalone.check(copied)


def test_files_that_are_missing_or_not_listed_are_refused(copied):
    sums = (copied / "SHA256SUMS").read_text().splitlines(keepends=True)
    (copied / "model.py").unlink()
    (copied / "SHA256SUMS").write_text("".join(line for line in sums if "predict.py" not in line))

    with pytest.raises(standalone.Refused, match=r"(?s)predict\.py is not listed.*model\.py is missing"):
        standalone.check(copied)
    with pytest.raises(standalone.Refused, match="another export, or a changed one"):
        standalone.check(copied, expect="0" * 64)
    (copied / "SHA256SUMS").unlink()
    with pytest.raises(standalone.Refused, match="not all of one"):
        standalone.check(copied)


def test_tampering_ends_the_script_before_anything_of_the_folder_is_run(copied, place):
    (copied / "model.py").write_text("raise SystemExit('it was run')\n")
    (copied / "numpy.py").write_text("raise SystemExit('it was imported')\n")

    done = subprocess.run(
        [sys.executable, "predict.py", str(place / "new")], cwd=copied, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1 and done.stdout == ""
    assert "model.py is not what was exported" in done.stderr and "it was" not in done.stderr


def test_tensors_are_safetensors_in_the_names_of_the_library_and_the_sums_are_standard(place):
    held, built = load_file(place / "linear-out/model.safetensors"), Predictor.load(place / "linear").backbone.module
    lines = [line.split("  ") for line in (place / "linear-out/SHA256SUMS").read_text().splitlines()]

    own = {name.removeprefix("backbone."): value for name, value in held.items() if name.startswith("backbone.")}
    assert own and all(torch.equal(built.state_dict()[name], value) for name, value in own.items())
    assert {name for _, name in lines} == {p.name for p in (place / "linear-out").iterdir()} - {"SHA256SUMS"}
    assert not {p.suffix for p in (place / "linear-out").iterdir()} & {".pt", ".pth", ".pkl", ".bin"}


def test_the_card_says_what_it_is_of_what_data_how_good_and_under_which_licence(place):
    card = (place / "linear-out/README.md").read_text()

    for words in ("# linear on demo", "`blue`, `green`, `red`", "fingerprint:", " train, ", "| test | ",
                  "resize: fit shorter, size 32", "16 of 16 labels are equal", "says nothing of it", "weights (BLAKE2b)"):  # fmt: skip
        assert words in card
    assert str(place) not in "".join(
        p.read_text() for p in (place / "linear-out").iterdir() if p.suffix != ".safetensors"
    )


def test_a_folder_that_says_something_else_fails_its_proof(place):
    settings, record = (json.loads((place / "linear" / name).read_text()) for name in ("config.json", "record.json"))
    predictor = Predictor.load(place / "linear")
    evidence = evidence_of(place / "linear", settings, record, None)
    with torch.no_grad():
        predictor.head.map.bias += torch.tensor([1.0, 0, 0])

    with pytest.raises(RunError, match=r"other logits than the run: they differ by 1, .*Nothing was written"):
        proved(place / "linear-out", predictor, evidence)


def test_images_that_are_gone_are_named_with_data_or_replaced_by_drawn_ones(place, tmp_path):
    settings, record = (json.loads((place / "linear" / name).read_text()) for name in ("config.json", "record.json"))
    moved = tmp_path / "moved"
    shutil.move(place / "photos", moved)
    try:
        drawn = evidence_of(place / "linear", settings, record, None)
        named = evidence_of(place / "linear", settings, record, str(moved))
        without_store = evidence_of(place / "linear", {**settings, "store": "gone.zarr"}, record, str(moved))
        with pytest.raises(ConfigError, match="holds none of the 18 images"):
            evidence_of(place / "linear", {**settings, "store": "gone.zarr"}, record, str(place / "new"))
    finally:
        shutil.move(moved, place / "photos")

    assert drawn.what.startswith("drawn pictures: the images of the run are not at hand") and drawn.stored is None
    assert len(drawn.dataset) == len(named.dataset) == len(without_store.dataset) == 16
    assert named.stored.shape == without_store.stored.shape == (16, 3)


def test_nothing_is_left_of_an_export_that_fails(place, tmp_path, monkeypatch):
    def fails(*_):
        raise BackboneError("it cannot be traced")

    monkeypatch.setattr(export, "traced", fails)

    with pytest.raises(BackboneError, match="cannot be traced"):
        run(ExportConfig(run_folder=place / "linear", out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "traced", full)
    with pytest.raises(RunError, match="No space left on device.*Nothing is left"):
        run(ExportConfig(run_folder=place / "linear", out=tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_written_over(place):
    with pytest.raises(RunError, match="exists already. Give another --out"):
        run(ExportConfig(run_folder=place / "linear", out=place / "linear-out"))


def test_a_run_whose_store_did_not_say_what_built_its_backbone_is_refused(place, tmp_path):
    shutil.copytree(place / "linear", tmp_path / "run")
    record = json.loads((tmp_path / "run/record.json").read_text())
    record["features"]["origin"] = {}
    (tmp_path / "run/record.json").write_text(json.dumps(record))

    with pytest.raises(RunError, match=r"no provenance\.jsonl"):
        run(ExportConfig(run_folder=tmp_path / "run", out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_have_moved_are_asked_for_with_their_digest(trained_online, tmp_path):
    shutil.copytree(trained_online / "full", tmp_path / "run")
    record = json.loads((tmp_path / "run/record.json").read_text())
    record["features"]["origin"]["weights"] = "gone.safetensors"
    (tmp_path / "run/record.json").write_text(json.dumps(record))
    digest = record["features"]["backbone"]["weights"]

    with pytest.raises(WeightsError, match=f"gone.safetensors is not there. Give --weights FILE .* digest, {digest}"):
        run(ExportConfig(run_folder=tmp_path / "run", out=tmp_path / "out"))
    with pytest.raises(RunError, match=r"(?s)weights: the run has .* weights of the run, random:1 holds others"):
        run(ExportConfig(run_folder=tmp_path / "run", out=tmp_path / "out", weights="random:1"))
    assert not (tmp_path / "out").exists()


def test_onnx_that_is_not_installed_is_said_before_anything_is_done(place, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"pip install featurecache\[onnx\]"):
        run(ExportConfig(run_folder=place / "linear", out=tmp_path / "out", onnx=True))


def test_the_onnx_file_runs_in_onnxruntime_with_any_number_of_images(place, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out, paths, alone_said = tmp_path / "out", sorted((place / "new").rglob("*.jpg")), proving._said
    # of the two proofs of this export, that of the ONNX file is in a fresh process, as `predict.py --onnx --json`
    monkeypatch.setattr(proving, "_said", lambda *given, onnx: (alone_said if onnx else said_here)(*given, onnx=onnx))

    report = run(ExportConfig(run_folder=place / "lfa", out=out, onnx=True))

    predictor = Predictor.load(place / "lfa")
    session = onnxruntime.InferenceSession(out / "model.onnx")
    said = session.get_modelmeta().custom_metadata_map
    steps = json.loads(said["preprocessing"])
    images = np.stack([standalone.prepared(standalone.opened(path), steps) for path in paths])
    for count in (1, len(paths)):
        (logits,) = session.run(["logits"], {"images": images[:count]})
        values = torch.from_numpy(logits).softmax(-1)
        np.testing.assert_allclose(values, predictor.predict_proba(paths[:count]), atol=1e-3)
    assert json.loads(said["class_names"]) == predictor.class_names
    assert report.record["onnx"]["labels_equal"] == 16
    assert any("model.onnx: 16 images" in note for note in report.tables()[0].notes)
