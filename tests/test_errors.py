"""The exception tree is what its docstring draws, and every class has its exit code."""

from __future__ import annotations

import inspect
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cofi_deploy import errors
from cofi_deploy.errors import CofiDeployError, MissingDependencyError, did_you_mean

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, CofiDeployError)
}


def drawn_tree() -> dict[str, str | None]:
    """Every class in the docstring, with the class that it hangs below."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").split("```")[1].strip().splitlines():
        match = re.match(r"((?:│   |    )*(?:├── |└── )?)(\w+)", line)
        assert match is not None, line
        depth = len(match[1]) // 4
        parents[match[2]] = path[depth - 1] if depth else None
        path[depth:] = [match[2]]
    return parents


def test_the_docstring_draws_the_tree_of_classes():
    real = {name: value.__bases__[0].__name__ for name, value in CLASSES.items()}
    assert drawn_tree() == {**real, "CofiDeployError": None}


def test_the_docstring_states_the_exit_codes():
    stated = {}
    for line in (errors.__doc__ or "").splitlines():
        if match := re.search(r"(\w+) +exit (\d)", line):
            stated[match[1]] = int(match[2])
    assert stated == {"CofiDeployError": 1, "UsageError": 2, "EnvironmentProblem": 3}
    assert {name: CLASSES[name].exit_code for name in stated} == stated


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_exits_as_the_branch_that_it_is_on(name):
    error = CLASSES[name]
    expected = 1
    if issubclass(error, errors.UsageError):
        expected = 2
    if issubclass(error, errors.EnvironmentProblem):
        expected = 3
    assert error.exit_code == expected
    assert error.__doc__


def test_a_missing_package_is_named_with_its_purpose_and_install_line():
    error = MissingDependencyError("openvino", "openvino", "the runtime 'openvino'")
    assert str(error) == (
        "the runtime 'openvino' needs the package 'openvino', which is not installed; "
        "run: pip install 'cofi-deploy[openvino]'"
    )
    assert (error.package, error.extra) == ("openvino", "openvino")


def test_the_nearest_allowed_value_is_offered():
    assert did_you_mean("mprc", ["sst2", "mrpc"]) == "allowed: sst2, mrpc; did you mean 'mrpc'?"


def test_nothing_is_offered_when_nothing_is_near():
    assert did_you_mean("zzz", ["sst2", "mrpc"]) == "allowed: sst2, mrpc"


@given(st.text(), st.lists(st.text(min_size=1), max_size=5))
def test_any_text_completes_a_message_that_lists_all_allowed_values(got, allowed):
    assert did_you_mean(got, allowed).startswith("allowed: " + ", ".join(allowed))
