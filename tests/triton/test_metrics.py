"""What an operator watches, on the real server: the metrics that the guide tells of."""

from __future__ import annotations

import json
import re
import urllib.request
from functools import partial
from pathlib import Path

import psutil
import pytest

from cofi_deploy import api
from cofi_deploy.serve.triton_server import TritonServer
from tests.export.conftest import WriteModel
from tests.triton.conftest import MODEL_NAME, ServeRepository
from tests.triton.test_serve import until

pytestmark = pytest.mark.triton

GUIDE = Path(__file__).parents[2] / "docs" / "triton.md"
STUB = "triton_python_backend_stub"


@pytest.fixture
def served(write_model: WriteModel, serve_repository: ServeRepository, tmp_path: Path):
    """A server with a response cache, on a model whose metrics carry a tag of its team."""
    settings = {"response_cache": True, "metric_tags": {"team": "search"}}
    repository = api.export(
        write_model(),
        format="triton",
        name=MODEL_NAME,
        settings=settings,
        output=tmp_path / "models",
    )
    return serve_repository(repository, cache_mib=4)


def ask(server: TritonServer, text: str) -> int:
    tensor = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return server.request("POST", f"/v2/models/{MODEL_NAME}_text/infer", body)[0]


def metrics(server: TritonServer) -> str:
    with urllib.request.urlopen(server.metrics_url) as answer:
        return str(answer.read().decode())


def value(server: TritonServer, metric: str, model: str = MODEL_NAME, reason: str = "") -> float:
    """The one series of ``model``; with ``reason`` where the metric has one for each."""
    lines = [
        line
        for line in metrics(server).splitlines()
        if line.startswith(f"{metric}{{") and f'model="{model}"' in line and reason in line
    ]
    (line,) = lines
    return float(line.rpartition(" ")[2])


def process_of(server: TritonServer, instance: str) -> psutil.Process:
    """The Python process that runs an instance of a model."""
    (found,) = [
        child
        for child in psutil.Process(server.pid).children(recursive=True)
        if child.name().startswith(STUB[:15]) and instance in " ".join(child.cmdline()).split()
    ]
    return found


def test_the_guide_names_metrics_that_the_server_has(served: TritonServer) -> None:
    told = set(re.findall(r"\bnv_\w+", GUIDE.read_text("utf-8")))
    # GPU metrics are there where a GPU is.
    missing = {name for name in told if not re.search(rf"^{name}\b", metrics(served), re.MULTILINE)}
    assert told
    assert not {name for name in missing if not name.startswith("nv_gpu_")}


def test_a_repeated_text_comes_from_the_cache_and_metrics_carry_the_tag(
    served: TritonServer,
) -> None:
    texts = ("a good film", "a good film", "another one", "a good film")
    assert [ask(served, text) for text in texts] == [200] * 4
    assert value(served, "nv_cache_num_hits_per_model") == 2
    assert value(served, "nv_cache_num_misses_per_model") == 2
    # Triton puts a line before the tag's name.
    for name in (MODEL_NAME, f"{MODEL_NAME}_tokenizer", f"{MODEL_NAME}_text"):
        assert re.search(
            rf'^nv_inference_count{{_team="search",model="{name}"', metrics(served), re.MULTILINE
        )


def test_a_dead_process_of_a_model_is_told_from_bad_texts_by_the_reason(
    served: TritonServer,
) -> None:
    failures = partial(value, served, "nv_inference_request_failure")
    assert [ask(served, text) for text in ("", " ", "a good film")] == [400, 400, 200]
    assert failures(model=f"{MODEL_NAME}_text", reason="OTHER") >= 2
    for name in (MODEL_NAME, f"{MODEL_NAME}_tokenizer", f"{MODEL_NAME}_answer"):
        assert failures(model=name, reason="BACKEND") == 0

    process_of(served, f"{MODEL_NAME}_0_0").kill()
    until(lambda: ask(served, "never asked before") == 500, "a request without the process")
    assert failures(reason="BACKEND") >= 1
    # Why the guide says not to trust them: neither probe notices.
    assert served.is_ready()
    assert served.request("GET", f"/v2/models/{MODEL_NAME}_text/ready")[0] == 200
