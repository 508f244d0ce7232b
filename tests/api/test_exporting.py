"""`api.export`: where an export goes, and when one that is there is made anew."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cofi_deploy import api
from cofi_deploy.api.exporting import export_if_stale, exported
from cofi_deploy.api.places import Place, find_model
from cofi_deploy.api.triton_settings import POD_THREADS
from cofi_deploy.artifacts import read_json, write_json
from cofi_deploy.errors import ArtifactError, RepositoryError, UsageError
from cofi_deploy.export.kubernetes import resource_name
from cofi_deploy.export.manifest import weights_sha256
from cofi_deploy.exports import EXPORTER_VERSION, check_export, rebuild_command
from cofi_deploy.loading import read_arch


@pytest.fixture(scope="module")
def fresh(tiny_run, tmp_path_factory) -> Place:
    """The finished run with an ONNX export below a root of its own; read only."""
    place = find_model(tiny_run, exports_root=tmp_path_factory.mktemp("exports"))
    export_if_stale(place, "onnx")
    return place


@pytest.fixture
def place(fresh, own_run, tmp_path) -> Place:
    """A copy of both that a test may change."""
    copy = find_model(own_run, exports_root=tmp_path / "exports")
    shutil.copytree(fresh.exports, copy.exports)
    return copy


def created(place: Place) -> str:
    manifest = read_json(place.exports / "onnx" / "export.json")
    return f"{manifest['created']} {(place.exports / 'onnx' / 'export.json').stat().st_mtime_ns}"


def test_widths_that_are_no_multiples_are_refused_with_the_way_to_train_them(fresh, tmp_path):
    arch = read_arch(fresh.model)
    width = next(layer.ffn for layer in arch.layers if layer.ffn % 32)
    with pytest.raises(
        UsageError, match=rf"--align 32: .*FFN of layer \d {width}.*train --align 32"
    ):
        api.export(fresh.model, format="onnx", align=32, output=tmp_path / "onnx")
    api.export(fresh.model, format="onnx", align=1, output=tmp_path / "onnx")


def test_an_unknown_format_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown format 'onx'.*did you mean 'onnx'"):
        api.export(format="onx")


@pytest.mark.parametrize(
    ("format_", "asked", "words"),
    [
        ("onnx", {"buckets": (16,)}, "--buckets is for --format trt, got --format onnx; leave it"),
        ("onnx", {"strip": True}, "--strip is for --format trt, got --format onnx; leave it out"),
        (
            "openvino",
            {"compute_capabilities": ("8.9",)},
            "--compute-capability is for --format trt, got --format openvino; leave it out",
        ),
        (
            "triton",
            {"weights_into": Path("engine")},
            "--weights-into is for --format trt, got --format triton; leave it out",
        ),
        (
            "trt",
            {"buckets": (16, 64), "seq_len": (1, 8, 16)},
            "give --buckets for several profiles, or --seq-len for one; not both",
        ),
        (
            "trt",
            {"weights_into": Path("engine"), "builder_level": 2},
            "--weights-into keeps how the engine was built; leave --builder-level out",
        ),
        (
            "trt",
            {"weights_into": Path("engine"), "precision": "fp16"},
            "--weights-into keeps how the engine was built; leave --precision out",
        ),
        (
            "triton",
            {"precision": "int8"},
            "--precision int8 is for the model itself; run: cofi-deploy export [MODEL] --format "
            "onnx with it, then cofi-deploy export <that directory> --format triton",
        ),
        (
            "triton",
            {"shrink_embeddings": True},
            "--shrink-embeddings is for --format onnx and openvino, got triton; run:",
        ),
        (
            "triton",
            {"calibration": Path("texts.txt")},
            "--calibration is for --format onnx, openvino and trt, got triton; run:",
        ),
        (
            "onnx",
            {"calibration": Path("texts.txt")},
            "--calibration is what lossy numbers are fitted to and judged on; give a --precision",
        ),
        (
            "onnx",
            {"flavour": "tensorrt"},
            "--flavour is for --format trt, got --format onnx; leave it out",
        ),
        (
            "trt",
            {"weights_into": Path("engine"), "flavour": "tensorrt-rtx"},
            "--weights-into keeps how the engine was built; leave --flavour out",
        ),
        (
            "openvino",
            {"backend": "python"},
            "--backend is for --format triton, got --format openvino; leave it out",
        ),
        (
            "onnx",
            {"seq_len": (16, 16, 16)},
            "--seq-len is for --format openvino, trt and triton; an ONNX graph takes every length",
        ),
        (
            "onnx",
            {"batch_size": (1, 8, 32)},
            "an ONNX graph takes every batch, or one text at a time: give --batch-size 1, or leave",
        ),
        (
            "openvino",
            {"batch_size": (1, 1, 1)},
            "an OpenVINO graph takes every shape, or one: give --batch-size and --seq-len with one",
        ),
        (
            "openvino",
            {"batch_size": (1, 8, 32), "seq_len": (16, 16, 16)},
            "an OpenVINO graph takes every shape, or one: give --batch-size and --seq-len with one",
        ),
    ],
)
def test_options_that_a_format_has_not_are_refused_with_the_way_on(tiny_run, format_, asked, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        api.export(tiny_run, format=format_, **asked)


def test_a_lossy_export_is_judged_on_the_data_of_its_run(tiny_run, tmp_path):
    directory = api.export(tiny_run, format="onnx", precision="int8", output=tmp_path / "onnx")
    manifest = check_export(directory)
    assert manifest.precision == "int8"
    text = exported({"onnx": directory})["onnx"]["parity"]["text"]
    assert "held out of the training data of sst2" in text["source"]
    assert text["examples"] > 0
    # And is served as it is.
    repository = api.export(directory, format="triton", name="small", output=tmp_path / "triton")
    assert check_export(repository).precision == "int8"


def test_calibration_text_may_be_a_file(tiny_run, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("a film\nno film at all\tbut a pair\n", encoding="utf-8")
    directory = api.export(
        tiny_run / "model",
        format="openvino",
        precision="fp16",
        calibration=texts,
        batch_size=(2, 2, 2),
        seq_len=(16, 16, 16),
        output=tmp_path / "openvino",
    )
    manifest = check_export(directory)
    assert manifest.parity is not None
    assert manifest.parity.text is not None
    assert manifest.parity.text.source == str(texts)
    assert manifest.parity.text.examples == 2


def test_the_default_place_is_named_after_the_run(tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = api.export(tiny_run, format="onnx")
    assert directory == Path("exports/sst2-tiny/onnx")
    assert (tmp_path / directory / "model.onnx").is_file()


def test_a_triton_model_is_named_after_the_run(tiny_run, tmp_path):
    directory = api.export(tiny_run / "models" / "0.5", format="triton", output=tmp_path / "out")
    assert (directory / "sst2-tiny-0_5" / "config.pbtxt").is_file()


def test_the_next_version_takes_over_what_is_served(tiny_run, tmp_path):
    place = {"format": "triton", "repository": tmp_path / "models", "name": "tiny"}
    settings = {"warmup_lengths": [8], "threads": 1}
    shapes = {"batch_size": (1, 2, 4), "settings": settings}
    first = api.export(tiny_run, backend="python", **shapes, **place)
    second = api.export(tiny_run / "models" / "0.5", **place)
    assert (first, second) == tuple(tmp_path / "models" / "tiny" / number for number in "12")
    options = check_export(second).options
    assert (options["max_batch_size"], options["threads"]) == (4, 1)
    assert options["backend"] == "python"
    assert exported({"triton": second})["triton"]["parity"]["agreement"] == 1.0


def test_lengths_of_the_command_line_are_what_triton_warms_up(tiny_run, tmp_path):
    lengths = {"format": "triton", "seq_len": (4, 8, 8)}
    directory = api.export(tiny_run, output=tmp_path / "models", name="tiny", **lengths)
    assert check_export(directory / "tiny" / "1").options["warmup_lengths"] == [4, 8]
    files = {path.name for path in (directory / "tiny" / "warmup").iterdir()}
    assert {name.rsplit("_", 1)[1] for name in files} == {"4", "8"}


@pytest.mark.parametrize(
    ("format", "way_on"),
    [
        (
            "triton",
            "run: cofi-deploy export [MODEL] --format onnx --opset 18, then "
            "cofi-deploy export <that directory> --format triton",
        ),
        ("openvino", "leave it out"),
    ],
)
def test_an_opset_that_would_be_ignored_is_refused(format, way_on, tiny_run):
    message = f"--opset 18 is for --format onnx, got --format {format}; {way_on}"
    with pytest.raises(UsageError, match=re.escape(message)):
        api.export(tiny_run, format=format, opset=18)


def test_manifests_for_kubernetes_lie_beside_the_repository(tiny_run, tmp_path):
    directory = api.export(tiny_run, format="triton", output=tmp_path / "out", kserve=True)
    deployment = (tmp_path / "out-kubernetes" / "deployment.yaml").read_text()
    assert f"name: {resource_name('sst2-tiny')}\n" in deployment
    # A container sees every core of its node, so the model is told how many are its own.
    config = (directory / "sst2-tiny" / "config.pbtxt").read_text()
    assert f'string_value: "{POD_THREADS}"' in config
    (tmp_path / "out-kubernetes" / "hpa.yaml").write_text("edited")
    with pytest.raises(RepositoryError, match="was edited since it was written"):
        api.export(tiny_run, format="triton", repository=directory, name="other", kserve=True)
    assert not (directory / "other").exists()


def test_a_missing_export_is_made_below_the_root_that_was_asked_for(fresh, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert export_if_stale(fresh, "onnx") == fresh.exports / "onnx"
    assert not list(tmp_path.iterdir())


def test_an_export_that_fits_is_left_alone(place):
    before = created(place)
    export_if_stale(place, "onnx")
    assert created(place) == before


def test_an_export_of_other_weights_is_made_anew(place, tiny_run):
    before = created(place)
    shutil.rmtree(place.model)
    shutil.copytree(tiny_run / "models" / "0.5", place.model)
    export_if_stale(place, "onnx")
    assert created(place) != before


def test_a_corrupt_export_is_made_anew(place):
    graph = place.exports / "onnx" / "model.onnx"
    whole = graph.read_bytes()
    graph.write_bytes(whole[:-10])
    export_if_stale(place, "onnx")
    assert len(graph.read_bytes()) == len(whole)


def changed_manifest(directory: Path, **changes) -> None:
    document = read_json(directory / "export.json")
    write_json(directory / "export.json", {**document, **changes})


def test_an_export_of_an_older_exporter_is_made_anew(place):
    directory = place.exports / "onnx"
    assert check_export(directory).exporter_version == EXPORTER_VERSION
    document = read_json(directory / "export.json")
    del document["exporter_version"]  # as all had it not, once
    write_json(directory / "export.json", document)
    export_if_stale(place, "onnx")
    assert check_export(directory).exporter_version == EXPORTER_VERSION


def test_what_is_made_anew_keeps_the_flags_of_what_was_there(place, tiny_run):
    directory = place.exports / "onnx"
    api.export(place.model, format="onnx", precision="fp16", opset=20, output=directory)
    shutil.rmtree(place.model)
    shutil.copytree(tiny_run / "models" / "0.5", place.model)
    export_if_stale(place, "onnx")
    manifest = check_export(directory)
    assert manifest.source_sha256 == weights_sha256(place.model)
    assert (manifest.precision, manifest.options["opset"]) == ("fp16", 20)
    assert rebuild_command(manifest).endswith("--format onnx --precision fp16 --opset 20")


def test_a_repository_that_is_made_anew_keeps_how_it_is_served(place):
    settings = {"warmup_lengths": [8], "threads": 1}
    shapes = {"batch_size": (1, 2, 4), "settings": settings}
    directory = place.exports / "triton"
    api.export(place.model, format="triton", name="mine", output=directory, **shapes)
    before = check_export(directory).options
    changed_manifest(directory, exporter_version=0)
    export_if_stale(place, "triton")
    manifest = check_export(directory)
    assert manifest.exporter_version == EXPORTER_VERSION
    assert manifest.options == before


def test_a_tuned_export_of_an_older_exporter_is_kept_and_the_command_told(place, caplog):
    directory = place.exports / "onnx"
    tuning = {"for": "onnxruntime-cpu@1x8", "max_drop": 0.3}
    changed_manifest(directory, exporter_version=0, tuning=tuning)
    before = created(place)
    export_if_stale(place, "onnx")
    assert created(place) == before
    words = r"another version of the exporter; .* --tune --for onnxruntime-cpu@1x8 --max-drop 0\.3"
    assert re.search(words, caplog.text)


def test_a_repository_of_an_older_export_is_as_old(place, tmp_path):
    changed_manifest(place.exports / "onnx", exporter_version=0)
    output = tmp_path / "models"
    api.export(place.exports / "onnx", format="triton", name="old", output=output)
    assert check_export(output).exporter_version == 0


def test_a_corrupt_model_is_refused_and_the_file_named(own_run, tmp_path):
    weights = own_run / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=re.escape(f"{str(weights)!r} has sha256")):
        api.export(own_run, format="onnx", output=tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_is_printed_holds_directory_and_parity(fresh):
    printed = exported({"onnx": fresh.exports / "onnx"})["onnx"]
    assert printed["directory"] == str(fresh.exports / "onnx")
    assert printed["parity"]["agreement"] == 1.0
