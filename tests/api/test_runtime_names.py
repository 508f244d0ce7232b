"""What `--runtime` and `--require` understand, and what the machine must then have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cofi_deploy import api
from cofi_deploy.api import runtime_names
from cofi_deploy.api.runtime_names import points_of, runtimes_of
from cofi_deploy.cli import main
from cofi_deploy.errors import EnvironmentProblem, UsageError
from cofi_deploy.serve import runner_onnxruntime, runner_tensorrt, runner_triton
from cofi_deploy.serve.runner import RUNTIMES, availability


@pytest.fixture
def tensorrt(monkeypatch):
    """Pretend which flavours of TensorRT this machine has."""

    def pretend(*here: str) -> None:
        monkeypatch.setattr(
            runner_tensorrt,
            "unavailable",
            lambda runtime: None if runtime in here else f"there is no {runtime}",
        )

    return pretend


@pytest.fixture
def no_triton(monkeypatch, tmp_path):
    """A machine without a Triton server, and without a network to install one from."""
    monkeypatch.setenv("COFI_DEPLOY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner_triton, "find_tritonserver", lambda: None)

    def offline(say):
        say("installing a Triton server")
        raise EnvironmentProblem("pip found no network")

    monkeypatch.setattr(runner_triton, "prepare_environment", offline)


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        pytest.param(("ort",), ("onnxruntime-cpu",), id="ort"),
        pytest.param(("onnxruntime",), ("onnxruntime-cpu",), id="onnxruntime"),
        pytest.param(("ort", "torch", "onnxruntime-cpu"), ("onnxruntime-cpu", "torch"), id="once"),
        pytest.param(("all",), RUNTIMES, id="all"),
        pytest.param(("openvino", "all"), ("openvino", "torch"), id="in the order of the names"),
    ],
)
def test_names_that_people_type(names, meant):
    assert runtimes_of(names)[: len(meant)] == meant


@pytest.mark.parametrize(
    ("here", "meant"),
    [
        pytest.param(("tensorrt", "tensorrt-rtx"), ("tensorrt",), id="both"),
        pytest.param(("tensorrt-rtx",), ("tensorrt-rtx",), id="rtx alone"),
        pytest.param((), ("tensorrt", "tensorrt-rtx"), id="none: both are told as skipped"),
    ],
)
def test_trt_is_the_tensorrt_that_is_here(here, meant, tensorrt):
    tensorrt(*here)
    assert runtimes_of(("trt",)) == meant
    assert [point.runtime for point in points_of(("trt@1x8",))] == list(meant)


def test_a_required_trt_is_content_with_either(tensorrt):
    tensorrt("tensorrt-rtx")
    assert runtimes_of((), ("trt",)) == ("tensorrt-rtx",)


def test_a_required_trt_that_is_absent_says_why_of_both(tensorrt):
    tensorrt()
    with pytest.raises(EnvironmentProblem) as caught:
        runtimes_of(("torch",), ("trt",))
    assert str(caught.value) == (
        "--require trt: tensorrt: there is no tensorrt; tensorrt-rtx: there is no tensorrt-rtx"
    )


def test_what_is_required_is_measured_too():
    assert runtimes_of(("torch",), ("ort",)) == ("torch", "onnxruntime-cpu")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("opnvino", "openvino"), ("trition", "triton"), ("tensort", "tensorrt"), ("al", "all")],
)
@pytest.mark.parametrize("as_required", [False, True], ids=["runtime", "require"])
def test_an_unknown_name_gets_the_list_and_the_nearest(name, nearest, as_required):
    words = f"runtime is {name!r}, allowed: torch, "
    with pytest.raises(UsageError, match=rf"{re.escape(words)}.*did you mean '{nearest}'\?$"):
        runtimes_of(*(((), (name,)) if as_required else ((name,),)))


def test_a_point_in_an_unknown_runtime_is_refused_instead_of_never_measured():
    with pytest.raises(UsageError, match=r"runtime is 'opnvino'.*did you mean 'openvino'"):
        points_of(("1x8", "opnvino@1x8"))


def test_points_without_a_runtime_stay_for_all_of_them():
    assert [str(point) for point in points_of(("1x8", "ort@2xtask"))] == [
        "1x8",
        "onnxruntime-cpu@2xtask",
    ]


def test_a_triton_that_is_asked_for_by_name_is_installed(no_triton, monkeypatch):
    asked = []
    monkeypatch.setattr(runner_triton, "prepare_environment", asked.append)
    runtimes_of(("torch", "triton"))
    assert len(asked) == 1


def test_all_asks_for_no_installation(no_triton, monkeypatch):
    def refuse(_):
        raise AssertionError("installed")

    monkeypatch.setattr(runner_triton, "prepare_environment", refuse)
    assert "triton" in runtimes_of(("all",))


def test_a_triton_that_cannot_be_installed_is_told_and_left_to_be_skipped(no_triton, caplog):
    assert runtimes_of(("triton",)) == ("triton",)
    assert [record.getMessage() for record in caplog.records] == [
        "installing a Triton server",
        "no Triton server can be installed: pip found no network",
    ]
    assert availability("triton") is not None


def test_a_required_triton_that_cannot_be_installed_is_an_error(no_triton):
    with pytest.raises(EnvironmentProblem, match=r"--require triton: no Triton server is here yet"):
        runtimes_of((), ("triton",))


def test_an_address_without_the_runtime_is_refused(tiny_run):
    words = "--triton-url names the server of --runtime triton, which is not asked for"
    with pytest.raises(UsageError, match=re.escape(words)):
        api.verify([tiny_run], runtimes=("torch",), triton_url="localhost:8001")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        pytest.param(
            ("verify", "--require", "trt"),
            3,
            "error: --require trt: tensorrt: there is no tensorrt; tensorrt-rtx: ",
            id="require trt",
        ),
        pytest.param(
            ("verify", "--require", "onnxruntime-cuda"),
            3,
            "error: --require onnxruntime-cuda: no device",
            id="require onnxruntime-cuda",
        ),
        pytest.param(
            ("verify", "--runtime", "ort", "--require", "triton"),
            3,
            "error: --require triton: no Triton server is here yet",
            id="require triton",
        ),
        pytest.param(
            ("verify", "--require", "trtt"),
            2,
            "error: runtime is 'trtt', allowed: ",
            id="require an unknown name",
        ),
        pytest.param(
            ("verify", "--runtime", "opnvino"),
            2,
            "error: runtime is 'opnvino', allowed: ",
            id="verify in an unknown runtime",
        ),
        pytest.param(
            ("bench", "--runtime", "opnvino"),
            2,
            "error: runtime is 'opnvino', allowed: ",
            id="bench in an unknown runtime",
        ),
    ],
)
@pytest.mark.usefixtures("no_triton")
def test_the_command_line_answers_before_anything_is_exported(
    arguments, code, words, tiny_run: Path, tensorrt, monkeypatch
):
    tensorrt()
    monkeypatch.setattr(runner_onnxruntime, "unavailable", lambda _: "no device")
    monkeypatch.setattr("cofi_deploy.api.verifying.export_if_stale", pytest.fail)
    command, *flags = arguments
    result = CliRunner().invoke(main, [command, str(tiny_run), *flags])
    assert result.exit_code == code
    assert words in result.stderr


@pytest.mark.slow
def test_all_measures_what_is_here_and_tells_why_the_rest_is_not(
    tiny_run, tmp_path, no_triton, tensorrt
):
    tensorrt()
    result = api.bench(
        [tiny_run / "teacher", tiny_run],
        runtimes=("all",),
        points=("1x8",),
        threads=1,
        min_repeats=3,
        max_seconds=0.0,
        fresh_process=False,
        exports_root=tmp_path / "exports",
    )
    skipped = {entry["runtime"]: entry["reason"] for entry in result.skipped}
    assert skipped["tensorrt"] == "there is no tensorrt"
    assert skipped["triton"].startswith("no Triton server is here yet")
    measured = {row["runtime"] for row in result.rows}
    assert {"torch", "onnxruntime-cpu"} <= measured
    assert measured | set(skipped) == set(RUNTIMES)
    assert not measured & set(skipped)


def test_the_short_names_are_no_runtimes():
    assert not set(runtime_names.ALIASES) & set(RUNTIMES)
    assert {name for meant in runtime_names.ALIASES.values() for name in meant} <= set(RUNTIMES)
