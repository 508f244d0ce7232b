"""Nothing in a repository runs code that is not ours, or leads out of it."""

from __future__ import annotations

import ast
import re

import pytest

from cofi_deploy.errors import RepositoryError
from cofi_deploy.triton_repository import check_repository, is_ours, served_code
from cofi_deploy.triton_repository.code import ROLES

pytest.importorskip("tritonclient.grpc.model_config_pb2")


def test_the_served_code_is_ours_and_nothing_else_is(tmp_path):
    for role in ROLES:
        assert is_ours(served_code(role))
    other = tmp_path / "model.py"
    other.write_bytes(served_code("encoder").read_bytes() + b"\n")
    assert not is_ours(other)


@pytest.mark.parametrize("role", ROLES)
def test_the_served_code_is_python_3_8(role):
    # A server brings its own Python, and 3.8 is the oldest that it may be.
    assert ast.parse(served_code(role).read_text(), feature_version=(3, 8))


@pytest.mark.parametrize("model", ["tiny", "tiny_tokenizer", "tiny_answer"])
def test_code_that_was_changed_is_refused(model, repository):
    path = repository / model / "1" / "model.py"
    path.write_text(path.read_text() + "import os\n")
    words = f"{str(path)!r} is not the code that this cofi-deploy ships, and a server would run it"
    with pytest.raises(RepositoryError, match=re.escape(words)):
        check_repository(repository)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("1/helper.py", "is code that cofi-deploy did not write; remove it"),
        ("1/__pycache__/model.cpython-311.pyc", "is code that cofi-deploy did not write"),
        ("1/plugin.so", "is code that cofi-deploy did not write"),
        ("1/weights.pkl", "may be a pickle, which can run code when opened; remove it"),
        ("1/pytorch_model.bin", "may be a pickle, which can run code when opened; remove it"),
        (".rolled-back-1/model.pt", "may be a pickle"),
    ],
)
def test_strange_files_are_refused_in_any_depth(file, words, repository):
    path = repository / "tiny" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    with pytest.raises(RepositoryError, match=re.escape(f"{str(path)!r} {words}")):
        check_repository(repository)


@pytest.mark.parametrize("name", ["tiny/1/more.onnx", "tiny/2", "other"])
def test_links_that_leave_are_refused(name, repository, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (repository / name).symlink_to(outside)
    with pytest.raises(RepositoryError, match=re.escape("points outside of")):
        check_repository(repository)


def test_links_that_stay_are_followed(repository):
    labels = repository / "tiny" / "labels.txt"
    labels.rename(repository / "tiny" / "classes.txt")
    labels.symlink_to("classes.txt")
    assert check_repository(repository)


def libraries(config):
    config.model_operations.op_library_filename.append("x.so")


def agents(config):
    config.model_repository_agents.agents.add(name="checksum")


def environment(config):
    config.parameters["EXECUTION_ENV_PATH"].string_value = "/tmp/env.tar.gz"


def runtime(config):
    config.runtime = "x.so"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (libraries, "model_operations names libraries to load; remove it"),
        (agents, "model_repository_agents names libraries to load; remove it"),
        (environment, "parameter 'EXECUTION_ENV_PATH' names code to load; remove it"),
        (runtime, "runtime is 'x.so', which is a library to load; remove it"),
    ],
)
def test_fields_that_load_code_are_refused(change, words, edit, repository):
    edit(change)
    with pytest.raises(RepositoryError, match=re.escape(words)):
        check_repository(repository)
