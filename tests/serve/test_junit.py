"""JUnit XML as CI systems read it: counts, groups, messages with the numbers."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cofi_deploy.serve.comparison import compare
from cofi_deploy.serve.junit import junit_xml
from cofi_deploy.serve.quantities import Tolerances


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"schema_version": 1, "machine": {"cpu": "a"}, "versions": {}, "rows": list(rows)}


def parsed(
    before: list[dict[str, Any]], after: list[dict[str, Any]], *, require_all: bool = True
) -> ET.Element:
    found = compare(document(*before), document(*after), Tolerances(), require_all=require_all)
    return ET.fromstring(junit_xml(found))


def timed(p50_ms: float, **more: Any) -> dict[str, Any]:
    return {"model": "mrpc.s95", "runtime": "onnxruntime-cpu", "batch_size": 1, "seq_len": 128,
            "p50_ms": p50_ms, **more}  # fmt: skip


def test_a_case_is_grouped_by_model_runtime_and_shape() -> None:
    root = parsed([timed(1.0)], [timed(1.0)])
    (case,) = root.iter("testcase")
    assert case.get("classname") == "mrpc_s95.onnxruntime-cpu.1x128"
    assert case.get("name") == "p50_ms"
    assert list(case) == []


def test_a_row_without_a_shape_is_grouped_as_accuracy() -> None:
    row = {"model": "m", "runtime": "torch", "metric": 0.9, "examples": 9}
    (case,) = parsed([row], [row]).iter("testcase")
    assert case.get("classname") == "m.torch.accuracy"


def test_what_is_worse_fails_with_the_numbers() -> None:
    root = parsed([timed(1.0)], [timed(1.5)])
    (failure,) = root.iter("failure")
    assert failure.get("type") == "worse"
    assert failure.get("message") == "p50_ms: 1 became 1.5, tolerated: 0.1 as a fraction"
    assert (failure.text or "").startswith("mrpc.s95 onnxruntime-cpu 1x128: p50_ms: 1 became 1.5")


def test_counts_of_the_suite_are_those_of_its_cases() -> None:
    before = [timed(1.0), timed(1.0, seed=2), timed(1.0, seed=3, load_ms=5.0)]
    after = [timed(2.0), timed(1.0, seed=3, load_ms=None)]
    root = parsed(before, after)
    (suite,) = root.iter("testsuite")
    for element in (root, suite):
        counts = [element.get(key) for key in ("tests", "failures", "errors", "skipped")]
        assert counts == ["4", "2", "0", "1"]
    assert len(list(suite.iter("testcase"))) == 4


@pytest.mark.parametrize(("require_all", "kind"), [(True, "failure"), (False, "skipped")])
def test_a_vanished_row_is_a_case_of_its_own(require_all: bool, kind: str) -> None:
    both, gone = timed(1.0), timed(1.0, batch_size=32)
    root = parsed([both, gone], [both], require_all=require_all)
    (case,) = [case for case in root.iter("testcase") if case.get("name") == "measured"]
    assert case.get("classname") == "mrpc_s95.onnxruntime-cpu.32x128"
    (outcome,) = case.iter(kind)
    assert outcome.get("message") == "this row of the baseline was not measured again"


def test_rows_that_differ_elsewhere_have_different_names() -> None:
    rows = [timed(1.0, seed=seed, threads=2) for seed in (1, 2)]
    names = {case.get("name") for case in parsed(rows, rows).iter("testcase")}
    assert names == {"p50_ms (seed 1)", "p50_ms (seed 2)"}


@given(st.text(), st.text())
@settings(deadline=None)  # a busy machine pauses for longer
def test_any_text_in_a_name_gives_xml_that_can_be_read(model: str, runtime: str) -> None:
    row = timed(1.0) | {"model": model, "runtime": runtime}
    (case,) = parsed([row], [{**row, "p50_ms": 9.0}]).iter("testcase")
    assert (case.get("classname") or "").count(".") == 2
