"""Server versions and container releases."""

from __future__ import annotations

import pytest

from cofi_deploy.triton_repository import server_version


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.51", (2, 51)),
        ("2.51.0", (2, 51)),
        ("24.01", (2, 42)),
        ("24.10", (2, 51)),
        ("24.10-py3", (2, 51)),
        ("25.01", (2, 54)),
        ("25.06", (2, 59)),
        ("25.07", (2, 59)),
        ("25.08", (2, 60)),
        ("25.10", (2, 62)),
        ("26.09", (2, 73)),
        ("23.12", None),
        ("25.13", None),
        ("latest", None),
        ("", None),
    ],
)
def test_versions_and_releases_are_understood(text, expected):
    assert server_version(text) == expected
