"""The load generator, the search for the highest rate, and the tables of benchmarks/triton_*.py."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.scripts import BENCHMARKS, load_script

grpc = pytest.importorskip("grpc")
pytest.importorskip("tritonclient.grpc")
load = load_script("triton_load")
rates = load_script("triton_rates")
STALL_S = 0.3


class Doubler:
    """A server of Triton's protocol that doubles `x`, and once stops to think."""

    def __init__(self, services: ModuleType, stall_at: int) -> None:
        self._pb = services
        self.stall_at = stall_at
        self.asked = 0

    def infer(self, request: Any, context: Any) -> Any:
        self.asked += 1
        if self.asked == self.stall_at:
            time.sleep(STALL_S)
        if request.model_name != "doubler":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_name!r}")
        x = np.frombuffer(request.raw_input_contents[0], np.int64)
        answer = self._pb.ModelInferResponse(model_name="doubler")
        answer.outputs.add(name="y", datatype="INT64", shape=list(request.inputs[0].shape))
        answer.raw_output_contents.append((2 * x).tobytes())
        return answer


@pytest.fixture
def stalling_server() -> Iterator[tuple[str, Doubler]]:
    """Answers one request at a time; the 40th takes `STALL_S`."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: PLC0415 - optional

    doubler = Doubler(service_pb2, stall_at=40)
    servicer = service_pb2_grpc.GRPCInferenceServiceServicer()
    servicer.ModelInfer = doubler.infer
    with ThreadPoolExecutor(max_workers=1) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", doubler
        server.stop(None).wait()


def case(value: int, answer: int | None = None) -> Any:
    return load.Case(
        inputs={"x": np.array([[value]], np.int64)},
        answer={"y": np.array([[2 * value if answer is None else answer]], np.int64)},
    )


def test_an_open_loop_counts_a_stall_against_every_request_that_was_due_in_it(stalling_server):
    url, _ = stalling_server
    seen = load.open_loop(url, "doubler", [case(3)], rate=200, seconds=0.7, warm_up_s=0.0, seed=1)
    assert seen.answered == seen.sent == len(seen.late_ms) == 140
    assert not seen.wrong
    assert not seen.errors
    # 0.3 s of 200 requests a second; half of them had to wait for more than half of it.
    waited = sum(latency > STALL_S / 2 * 1e3 for latency in seen.latencies_ms)
    assert waited >= 15
    assert seen.percentile_ms(99) > 0.8 * STALL_S * 1e3


def test_an_open_loop_stops_when_its_p99_is_sure_to_miss_the_limit(stalling_server):
    url, doubler = stalling_server
    seen = load.open_loop(
        url, "doubler", [case(3)], rate=200, seconds=3.0, warm_up_s=0.0, seed=1, limit_ms=50.0
    )
    assert seen.stopped_early
    assert seen.answered == seen.sent == doubler.asked < 300
    assert not rates.keeps(seen)


def test_a_closed_loop_keeps_so_many_requests_in_flight(stalling_server):
    url, doubler = stalling_server
    doubler.stall_at = 0
    seen = load.closed_loop(
        url, "doubler", [case(1), case(2)], clients=2, seconds=0.2, warm_up_s=0.1
    )
    assert 0 < seen.answered == seen.sent < doubler.asked
    assert not seen.wrong


def test_wrong_answers_and_errors_are_counted_apart(stalling_server):
    url, doubler = stalling_server
    doubler.stall_at = 0
    wrong = load.closed_loop(
        url, "doubler", [case(1), case(1, answer=5)], clients=1, seconds=0.1, warm_up_s=0.0
    )
    assert wrong.wrong in {wrong.answered // 2, (wrong.answered + 1) // 2}
    assert not wrong.errors
    missing = load.closed_loop(url, "nobody", [case(1)], clients=1, seconds=0.1, warm_up_s=0.0)
    assert missing.errors == Counter({"StatusCode.NOT_FOUND: no model 'nobody'": missing.sent})
    assert not rates.keeps(missing)


@pytest.mark.parametrize(
    ("outputs", "right"),
    [
        ({"labels": [[b"a", b"b"]], "scores": [[0.75, 0.25]]}, True),
        ({"labels": [[b"a", b"b"]], "scores": [[0.75 + 5e-5, 0.25]]}, True),
        ({"labels": [[b"b", b"a"]], "scores": [[0.75, 0.25]]}, False),
        ({"labels": [[b"a", b"b"]], "scores": [[0.7505, 0.2495]]}, False),
        ({"labels": [[b"a", b"b"]], "scores": [[0.75, np.nan]]}, False),
        ({"labels": [[b"a", b"b"]], "scores": [[0.75]]}, False),
        ({"labels": [[b"a", b"b"]]}, False),
    ],
    ids=["equal", "rounded", "label", "score", "NaN", "shape", "missing"],
)
def test_an_answer_is_right_when_labels_are_equal_and_numbers_nearly(outputs, right):
    def arrays(values: dict[str, Any]) -> dict[str, np.ndarray]:
        types = {"labels": np.object_, "scores": np.float32}
        return {name: np.array(value, types[name]) for name, value in values.items()}

    expected = arrays({"labels": [[b"a", b"b"]], "scores": [[0.75, 0.25]]})
    assert load.Case(inputs={}, answer=expected).is_right(arrays(outputs)) is right


@pytest.mark.parametrize("start", [3.0, 100.0, 2000.0], ids=["low", "near", "high"])
def test_a_search_ends_just_below_the_highest_rate_that_passes(start):
    search = load.Bisection(rate=start, step=1.5, precision=1.05)
    probes = 0
    while not search.done:
        search.tell(passed=search.rate <= 140.0)
        probes += 1
    assert 140.0 / 1.05 <= search.passed <= 140.0 < search.failed
    assert probes <= 16


def test_a_ratio_comes_with_the_interval_of_its_searches():
    ratio = rates._ratio([10.0, 10.0, 10.0], [100.0, 110.0, 121.0])
    assert ratio["speedup"] == pytest.approx(11.0)
    # Logarithms log 10, log 11, log 12.1: deviation log 1.1, t(0.975, 2) = 4.303.
    half = 4.30265 * np.log(1.1) / np.sqrt(3)
    assert ratio["speedup_low"] == pytest.approx(11.0 * np.exp(-half), rel=1e-4)
    assert ratio["speedup_high"] == pytest.approx(11.0 * np.exp(half), rel=1e-4)


@pytest.mark.parametrize("searches", [1, 2])
def test_one_search_or_two_give_no_interval(searches):
    assert rates._ratio([10.0] * searches, [50.0] * searches) == {
        "speedup": pytest.approx(5.0),
        "speedup_low": None,
        "speedup_high": None,
    }


def test_a_model_that_holds_nothing_has_no_ratio():
    nothing = {"speedup": None, "speedup_low": None, "speedup_high": None}
    assert rates._ratio([10.0, 0.0, 9.0], [50.0, 50.0, 50.0]) == nothing


def test_the_script_says_what_it_takes():
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "triton_serving.py"), "--dense", "x"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "the following arguments are required: --pruned" in done.stderr


def measured(model: str, kind: str, **values: Any) -> dict[str, Any]:
    """A row of the result file."""
    return {
        "task": "sst2",
        "model": model,
        "load": kind,
        "requests": "token ids",
        "seq_len": 128,
        "precision": "fp32",
        "backend": "python",
        "threads": 2,
        "instances": 1,
        "sequences_per_s": 31.4,
        **{"p50_ms": 12.34, "p95_ms": 40.4, "p99_ms": 48.6},
        "mean_batch_size": 1.25,
        "sent": 1000,
        "examples": 600,
        "wrong": 0,
        "generator_cores": 0.11,
        **values,
    }


def fault(name: str, **values: Any) -> dict[str, Any]:
    return {"fault": name, "sent": 4321, "wrong": 0, "lost": 0, "held": True, **values}


RESULT = {
    "machine": {"cpu": "Some CPU", "cores": 2},
    "versions": {"onnxruntime": "1.32.0"},
    "mean_length": 25.7,
    "rows": [
        measured("trivial", "closed", clients=32, sequences_per_s=2345.6),
        measured("dense", "closed", clients=8),
        measured("pruned", "closed", clients=8, sequences_per_s=321.0, p50_ms=5.67),
        measured("dense", "open", rate_per_s=40.0),
        measured("dense", "highest", limit_ms=50.0),
        measured(
            *("pruned", "highest"),
            limit_ms=50.0,
            sequences_per_s=320.2,
            speedup=10.2,
            speedup_low=9.44,
            speedup_high=11.06,
            found_per_s=[318.0, 320.0, 322.0],
        ),
        fault("malformed", malformed=10_000, kinds=89),
        fault("stub_killed", lost=3, held=False),
        fault("disk_full", held=None),
    ],
}


def test_the_tables_say_what_the_result_file_says():
    lines = load_script("triton_table").triton_table(RESULT).splitlines()
    assert [line for line in lines if line.startswith("| ")] == [
        "| requests | dense | pruned | times dense |",
        "| token ids, 128 tokens | 31 (49 ms of 600) | 320 (49 ms of 600) | 10.2x (9.4 to 11.1) |",
        "| clients | dense: per second | p50 / p95 / p99 ms | mean batch "
        "| pruned: per second | p50 / p95 / p99 ms | mean batch |",
        "| 8 | 31 | 12 / 40 / 49 | 1.2 | 321 | 5.7 / 40 / 49 | 1.2 |",
        "| fault | good requests | wrong | lost | as it must be |",
        "| 10,000 malformed requests of 89 kinds among them | 4,321 | 0 | 0 | yes |",
        "| kill -9 of the model's Python process, server started again | 4,321 | 0 | 3 | **no** |",
    ]
    assert "At most, whatever the latency: 31 per second dense, 321 pruned." in lines
    assert "(at most 0.11 of them for it)" in lines[-1]
    assert "The same path holds 2346 per second" in lines[-1]
    assert lines[-1].endswith("Wrong answers: 0 of 6,000.")


def test_a_ratio_of_two_searches_is_told_as_such():
    row = {"speedup": 6.54, "speedup_low": 0.1, "speedup_high": 900.0, "found_per_s": [1.0, 2.0]}
    assert load_script("triton_table")._times_dense(row) == "6.5x (2 searches)"


def test_every_kind_of_malformed_request_has_a_name_of_its_own():
    malformed = load_script("triton_malformed")
    target = malformed.Target(model="m", vocab_size=99, max_positions=64, max_batch_size=4)
    names = [request.name for request in malformed.malformed_requests(target)]
    assert len(set(names)) == len(names) >= 80
