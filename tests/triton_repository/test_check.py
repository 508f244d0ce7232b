"""What a server would refuse, or serve wrongly, is refused first."""

from __future__ import annotations

import logging
import re

import onnx
import pytest

from cofi_deploy.errors import ConfigError, RepositoryError
from cofi_deploy.export.triton_config import ServedModel, TritonOptions, model_config
from cofi_deploy.triton_repository import check_repository
from cofi_deploy.triton_repository.fields import warn_about_threads
from tests.triton_repository.conftest import rewrite_checksums

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def put(path, value):
    """A change of a configuration: ``put("instance_group.0.count", 0)``."""

    def change(config):
        *way, last = path.split(".")
        for name in way:
            config = config[int(name)] if name.isdecimal() else getattr(config, name)
        if isinstance(value, list):
            del getattr(config, last)[:]
            getattr(config, last).extend(value)
        else:
            setattr(config, last, value)

    return change


def drop(path):
    return lambda config: config.ClearField(path)


def parameter(name, value):
    def change(config):
        config.parameters[name].string_value = value

    return change


def test_a_written_repository_passes(written):
    assert check_repository(written) == ("tiny", "tiny_answer", "tiny_text", "tiny_tokenizer")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("name", "huge"), "name is 'huge', but the folder is called 'tiny'"),
        (put("max_batch_size", -4), "max_batch_size is -4, allowed: 0 (no batching) or more"),
        (put("max_batch_size", 0), "dynamic_batching needs max_batch_size 1 or more, got 0"),
        (put("max_batch_size", 8), "'length_16_batch_32' has batch_size 32, allowed: 1 to 8"),
        (
            put("dynamic_batching.preferred_batch_size", [64]),
            "preferred_batch_size is 64, allowed: 1 to 32",
        ),
        (put("backend", "onnx"), "backend is 'onnx', allowed: onnxruntime, tensorrt, openvino, p"),
        (put("platform", "pytorch"), "platform is 'pytorch', allowed: 'ensemble', or backend in"),
        (put("instance_group.0.count", 0), "instance_group has count 0, allowed: 1 or more"),
        (
            put("instance_group.0.gpus", [0]),
            "instance_group has kind KIND_CPU, but names gpus [0]",
        ),
        (put("instance_group.0.gpus", [-1]), "names gpus [-1], allowed: 0 or more"),
        (
            put("instance_group.0.profile", ["0"]),
            "instance_group names profiles, which backend 'onnxruntime' has not",
        ),
        (
            put("version_policy.latest.num_versions", 0),
            "version_policy serves the latest 0 versions, allowed: 1 or more",
        ),
        (
            put("version_policy.specific.versions", [0, 1]),
            "version_policy serves versions [0], allowed: 1 or more",
        ),
        (
            put("version_policy.specific.versions", [3]),
            "version_policy serves version 3, the folder has 1",
        ),
        (drop("input"), "it has no input; a complete configuration names every tensor"),
        (put("input.0.name", "attention_mask"), "input 'attention_mask' is there twice"),
        (put("input.0.dims", [0]), "input 'input_ids' has dims [0], allowed: one number or more"),
        (put("input.0.dims", []), "input 'input_ids' has dims [], allowed: one number or more"),
        (put("input.0.data_type", 0), "input 'input_ids' has no data_type"),
        (
            parameter("intra_op_thread_count", "-1"),
            "parameter 'intra_op_thread_count' is '-1', allowed: a whole number, 0 or more",
        ),
        (put("input.0.dims", [7]), "'input_ids' has dims [16], the input has [7]"),
        (put("output.0.dims", [2]), "labels.txt' has 3 labels, output 'logits' has 2 classes"),
        (
            put("input.0.data_type", schema.TYPE_INT32),
            "'input_ids' has data_type TYPE_INT64, the input has TYPE_INT32",
        ),
        (put("output.0.name", "scores"), "outputs are ['scores'], model.onnx has ['logits']"),
        (
            put("output.0.data_type", schema.TYPE_FP16),
            "output 'logits' has data_type TYPE_FP16, the graph has TYPE_FP32",
        ),
        (put("output.0.label_filename", "../x"), "names '../x', expected a plain file name"),
        (put("output.0.label_filename", "names.txt"), "names.txt', which is missing"),
        (put("default_model_filename", "gone.onnx"), "gone.onnx' is missing"),
        (
            put("default_model_filename", "../../../x"),
            "names '../../../x', expected the plain name of a file in",
        ),
    ],
)
def test_a_configuration_that_a_server_would_refuse_is_refused_first(
    change, words, edit, repository
):
    edit(change)
    with pytest.raises(RepositoryError, match=re.escape(words)) as info:
        check_repository(repository)
    assert str(repository / "tiny" / "config.pbtxt") in str(info.value)


@pytest.mark.parametrize("file", ["config.pbtxt", "configs/python.pbtxt"])
def test_every_configuration_of_a_model_is_checked(file, edit, repository):
    edit(put("max_batch_size", -1), file=file)
    with pytest.raises(RepositoryError, match=re.escape(f"{file}': max_batch_size is -1")):
        check_repository(repository)


def warmup(name, value):
    def change(config):
        item = config.model_warmup[0].inputs["input_ids"]
        if name == "dims":
            del item.dims[:]
            item.dims.extend(value)
        else:
            setattr(item, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (warmup("input_data_file", "nothing"), "nothing', which is missing"),
        (warmup("input_data_file", "/etc/passwd"), "expected the plain name of a file in 'warmup'"),
        (
            warmup("input_data_file", "input_ids_64"),
            "input_ids_64', which has 512 bytes, its shape needs 128",
        ),
        (warmup("dims", [16, 1]), "'input_ids' has dims [16, 1], the input has [-1]"),
        (warmup("dims", [0]), "'input_ids' has dims [0], the input has [-1]"),
        (
            lambda config: config.model_warmup[0].inputs.pop("token_type_ids"),
            "has inputs ['attention_mask', 'input_ids'], not ['attention_mask', 'input_ids', 'tok",
        ),
    ],
)
def test_warm_up_that_would_fail_is_named(change, words, edit, repository):
    edit(change)
    with pytest.raises(RepositoryError, match=re.escape(words)):
        check_repository(repository)


def test_warm_up_beyond_the_positions_of_the_model_is_named(edit, repository):
    (repository / "tiny" / "warmup" / "long").write_bytes(bytes(8 * 65))

    def longer(config):
        for item in config.model_warmup[0].inputs.values():
            item.dims[0] = 65
            item.input_data_file = "long"

    edit(longer)
    with pytest.raises(RepositoryError, match="'length_16_batch_1' has 65 tokens, the model takes"):
        check_repository(repository)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x02\x00\x00\x00hi", None),
        (b"\x02\x00\x00\x00hi\x00\x00\x00\x00", "with 2 strings, its shape needs 1"),
        (b"\x09\x00\x00\x00hi", "with None strings, its shape needs 1"),
        (b"\x02", "with None strings, its shape needs 1"),
    ],
)
def test_warm_up_of_strings_counts_them(content, words, edit, repository):
    def add(config):
        sample = config.model_warmup.add(name="one text", batch_size=1)
        item = sample.inputs["text"]
        item.data_type = schema.TYPE_STRING
        item.dims.append(1)
        item.input_data_file = "text_1"

    edit(add, model="tiny_tokenizer")
    folder = repository / "tiny_tokenizer" / "warmup"
    folder.mkdir(exist_ok=True)
    (folder / "text_1").write_bytes(content)
    if words is None:
        check_repository(repository)
        return
    with pytest.raises(RepositoryError, match=re.escape(words)):
        check_repository(repository)


@pytest.mark.parametrize(
    ("old", "new"),
    [("TYPE_FP32", "TYPE_REAL"), ("count: 1", "cuont: 1"), ("count: 1", 'count: "one"')],
)
def test_a_file_that_is_no_configuration_is_named_with_its_line(old, new, repository):
    path = repository / "tiny" / "config.pbtxt"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(RepositoryError, match=r"is no Triton model configuration: \d+:\d+"):
        check_repository(repository)


def test_a_graph_with_a_fixed_batch_cannot_be_batched(repository):
    path = repository / "tiny" / "1" / "model.onnx"
    proto = onnx.load(path)
    for item in proto.graph.input:
        item.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(proto, path)
    rewrite_checksums(path.parent)
    with pytest.raises(RepositoryError, match="the first axis of the graph is fixed at 4"):
        check_repository(repository)


def test_a_model_file_that_is_no_onnx_is_named(repository):
    (repository / "tiny" / "1" / "model.onnx").write_bytes(b"\xff\xff\xff")
    rewrite_checksums(repository / "tiny" / "1")
    with pytest.raises(RepositoryError, match=r"model\.onnx' is no ONNX model"):
        check_repository(repository)


def test_a_graph_of_another_structure_than_its_manifest_says_is_refused(repository):
    path = repository / "tiny" / "1" / "model.onnx"
    proto = onnx.load(path)
    (entry,) = [prop for prop in proto.metadata_props if prop.key == "cofi_deploy.arch"]
    entry.value = entry.value.replace('"hidden": 29', '"hidden": 28')
    onnx.save(proto, path)
    rewrite_checksums(path.parent)
    with pytest.raises(RepositoryError, match="was made from another Arch than"):
        check_repository(repository)


def test_a_corrupt_version_is_named_with_its_checksum(repository):
    path = repository / "tiny" / "1" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RepositoryError, match=r"model\.onnx' has sha256 .* export it again"):
        check_repository(repository)


def test_a_version_without_manifest_is_refused(repository):
    (repository / "tiny" / "1" / "export.json").unlink()
    with pytest.raises(RepositoryError, match=re.escape("holds no export.json; expected")):
        check_repository(repository)


@pytest.mark.parametrize("file", ["tiny_tokenizer/1/tokenizer.json", "tiny_answer/1/settings.json"])
def test_what_the_text_models_read_must_be_there(file, repository):
    (repository / file).unlink()
    with pytest.raises(RepositoryError, match=re.escape(f"{file}' is missing; export the model")):
        check_repository(repository)


def test_torn_settings_are_named(repository):
    (repository / "tiny_answer" / "1" / "settings.json").write_text("{")
    with pytest.raises(RepositoryError, match=re.escape("settings.json' is not readable JSON")):
        check_repository(repository)


def test_a_python_model_without_code_is_named(repository):
    (repository / "tiny_answer" / "1" / "model.py").unlink()
    with pytest.raises(RepositoryError, match=re.escape("model.py' is missing; export the model")):
        check_repository(repository)


def test_missing_parts_of_a_repository_are_named(repository, tmp_path):
    with pytest.raises(RepositoryError, match="is not a directory; expected a repository"):
        check_repository(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RepositoryError, match="holds no model folder; run: cofi-deploy export"):
        check_repository(empty)
    (repository / "tiny" / "1").rename(repository / "tiny" / "01")
    with pytest.raises(RepositoryError, match="holds no version folder; expected one called 1"):
        check_repository(repository)
    (repository / "tiny" / "config.pbtxt").unlink()
    with pytest.raises(RepositoryError, match=r"config\.pbtxt' is missing; every model needs one"):
        check_repository(repository)


def test_a_folder_without_number_is_ignored_like_a_server_does(repository):
    (repository / "tiny" / "notes").mkdir()
    (repository / "tiny" / "1").rename(repository / "tiny" / "12")
    assert "tiny" in check_repository(repository)


def test_more_threads_than_cores_is_a_warning(edit, repository, monkeypatch, caplog):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    edit(put("instance_group.0.count", 2))
    with caplog.at_level(logging.WARNING):
        check_repository(repository)
    assert "'tiny' has 2 instances of 4 threads, this machine has 4 cores" in caplog.text
    caplog.clear()
    edit(parameter("intra_op_thread_count", "2"))
    check_repository(repository)
    assert caplog.text == ""


def test_threads_that_openvino_shares_among_its_instances_are_counted_too(monkeypatch, caplog):
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    served = ServedModel(name="tiny", kind="text-classification", labels=3)
    for threads, warned in ((2, ""), (3, "'tiny' has 2 instances of 3 threads, this machine has")):
        options = TritonOptions(backend="openvino", instances=2, threads=threads)
        warn_about_threads(model_config(served, options))
        assert warned in caplog.text
        assert bool(warned) == bool(caplog.text)


@pytest.mark.parametrize(
    ("change", "server", "words"),
    [
        (
            put("ensemble_scheduling.max_inflight_requests", 4),
            "2.51",
            "ensemble_scheduling.max_inflight_requests needs server 2.64 or newer, the target is "
            "2.51; remove it",
        ),
        (
            lambda config: config.model_metrics.metric_control.add(),
            "24.10",
            "model_metrics needs server 2.54 or newer, the target is 2.51; remove it",
        ),
    ],
)
def test_a_field_that_the_server_lacks_is_named(change, server, words, edit, repository):
    edit(change, model="tiny_text")
    assert check_repository(repository)
    with pytest.raises(RepositoryError, match=re.escape(words)):
        check_repository(repository, server=server)
    assert check_repository(repository, server="26.10")


def test_a_server_that_is_no_version_is_named(repository):
    with pytest.raises(ConfigError, match="server is 'new', expected a version such as"):
        check_repository(repository, server="new")


def test_a_decoupled_model_cannot_be_cached(edit, repository):
    def both(config):
        config.response_cache.enable = True
        config.model_transaction_policy.decoupled = True

    edit(both)
    with pytest.raises(RepositoryError, match="response_cache is enabled, which a decoupled model"):
        check_repository(repository)
