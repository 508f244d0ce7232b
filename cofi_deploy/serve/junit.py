"""A comparison as JUnit XML, which every CI system draws: one test case for each row and quantity.

In: a `Comparison`. Out: the text of the file. What is not comparable counts as skipped, what is
worse or missing as failed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from xml.etree import ElementTree as ET

from cofi_deploy.serve.comparison import Comparison, Finding, Identity, name_of

_SUITE = "cofi-deploy compare"
# XML 1.0 cannot hold these, escaped or not.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(comparison: Comparison) -> bytes:
    """The comparison as UTF-8 encoded XML.

    A test case is named after its quantity, and after what else tells its row from the others;
    its class is ``model.runtime.shape``, so that CI systems group by what was measured where.
    """
    cases = [_finding_case(one, comparison) for one in comparison.findings]
    cases += [_vanished_case(one, comparison) for one in comparison.vanished]
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": 0,
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    attributes = {"name": _SUITE, **{name: str(count) for name, count in counts.items()}}
    root = ET.Element("testsuites", attributes)
    suite = ET.SubElement(root, "testsuite", attributes)
    suite.extend(cases)
    output = ET.SubElement(suite, "system-out")
    output.text = _clean("\n".join([comparison.sentence, *comparison.notes]))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _finding_case(finding: Finding, comparison: Comparison) -> ET.Element:
    case = _case(finding.identity, finding.quantity, comparison.told_apart)
    verdict, reason = finding.verdict, finding.judgement.reason
    if verdict == "worse" or (verdict == "vanished" and comparison.require_all):
        _outcome(case, "failure", f"{finding.quantity}: {reason}", finding.identity, verdict)
    elif verdict in {"vanished", "not comparable"}:
        _outcome(case, "skipped", reason, finding.identity, None)
    return case


def _vanished_case(identity: Identity, comparison: Comparison) -> ET.Element:
    case = _case(identity, "measured", comparison.told_apart)
    kind = "failure" if comparison.require_all else "skipped"
    reason = "this row of the baseline was not measured again"
    _outcome(case, kind, reason, identity, "vanished" if comparison.require_all else None)
    return case


def _case(identity: Identity, name: str, told_apart: Collection[str]) -> ET.Element:
    details = ", ".join(f"{key} {identity[key]}" for key in told_apart if key in identity)
    shape = "x".join(str(identity[key]) for key in ("batch_size", "seq_len") if key in identity)
    parts = [
        identity.get("model", "model"),
        identity.get("runtime", "runtime"),
        shape or "accuracy",
    ]
    return ET.Element(
        "testcase",
        {
            "classname": ".".join(_segment(part) for part in parts),
            "name": _clean(f"{name} ({details})" if details else name),
            "time": "0",
        },
    )


def _outcome(
    case: ET.Element, kind: str, message: str, identity: Mapping[str, Any], type_: str | None
) -> None:
    element = ET.SubElement(case, kind, {"message": _clean(message)})
    if type_ is not None:
        element.set("type", type_)
    element.text = _clean(f"{name_of(identity)}: {message}")


def _segment(value: Any) -> str:
    """A part of a class name: CI systems split at dots and slashes."""
    return re.sub(r"[./\\\s]+", "_", _clean(str(value))) or "_"


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("?", text)
