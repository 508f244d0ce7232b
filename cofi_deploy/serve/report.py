"""`report.html`: one self-contained page that shows what `verify.json` says.

In: the document that `verify.py` writes, and steps of a ``metrics.jsonl``. Out: HTML without
scripts or external files, for screen (light, dark, phone), print and screen readers. The page is
`templates/report.html.j2`, its pictures are in `pareto.py`, `charts.py`, `bars.py` and `curves.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2

from cofi_deploy.arch import Arch
from cofi_deploy.serve.bars import part_name, size_bars
from cofi_deploy.serve.charts import latency_strips
from cofi_deploy.serve.curves import training_curves
from cofi_deploy.serve.pareto import accuracy_against_speedup
from cofi_deploy.serve.profile_chart import profile_chart
from cofi_deploy.structure_svg import structure_svg

Row = Mapping[str, Any]

# Typographic characters by name: they look like others in source code.
_MISSING = "\N{EN DASH}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_MINUS = "\N{MINUS SIGN}"

# Columns of the latency table that only some results have: key, heading, filter.
_LATENCY_EXTRAS = (
    ("tokens_per_s", "tokens/s", "whole"),
    ("clients", "clients", "whole"),
    ("saturated_sequences_per_s", "seq/s saturated", "whole"),
    ("load_ms", "load", "ms"),
    ("first_inference_ms", "first", "ms"),
    ("peak_memory_mib", "peak MiB", "whole"),
)


def render_report(document: Mapping[str, Any], steps: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page, as text.

    Args:
        document: Content of a `verify.json`.
        steps: Lines of the run's `metrics.jsonl`; none means no training curves.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cofi_deploy.serve", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(_FILTERS)
    return environment.get_template("report.html.j2").render(_view(document, steps))


def _view(document: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that the template shows, by the names it uses."""
    rows: Sequence[Row] = document["rows"]
    accuracy = [row for row in rows if "metric" in row]
    latency = [row for row in rows if "p50_ms" in row]
    profiles = document.get("profiles", ())
    dense, judged, members = document["dense"], document["judged"], document["members"]
    verdict = document["verdict"]
    scored = [row for row in accuracy if row["model"] in members]
    timed = [row for row in latency if row["model"] in members]
    targets = {claim["claim"]: claim["asked"] for claim in verdict["claims"]}
    return {
        "document": document,
        "verdict": verdict,
        "status": _status(verdict),
        "task": accuracy[0]["task"] if accuracy else "",
        "dense": dense,
        "judged": judged,
        "members": members,
        "facts": _facts(accuracy, latency, dense, judged),
        "accuracy": accuracy,
        "latency": latency,
        "threads": _threads(latency),
        "has_requests": any("requests" in row for row in accuracy),
        "latency_extras": _present(latency, _LATENCY_EXTRAS),
        "pareto": accuracy_against_speedup(scored, timed, targets=targets),
        "strips": latency_strips(document["latency_samples"], dense, judged),
        "size_table": _size_table(document.get("sizes", ())),
        "size_picture": size_bars(document.get("sizes", ())),
        "explanations": document.get("explanations", ()),
        "profiles": profiles,
        "profile_picture": profile_chart(profiles) if profiles else None,
        "structures": _structures(document["structures"]),
        "curves": training_curves(steps),
        "comparisons": _judged_first(document["comparisons"], judged),
        "facts_of_machine": _machine(document),
    }


def _present(rows: Sequence[Row], columns: Iterable[tuple[str, str, str]]) -> list[tuple[str, ...]]:
    return [column for column in columns if any(column[0] in row for row in rows)]


def _judged_first(comparisons: Sequence[Row], judged: str) -> list[Row]:
    return sorted(comparisons, key=lambda item: item["model"] != judged)


def _machine(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine, conditions of the measurement and versions, as names and words."""
    facts = {
        name.replace("_", " "): ", ".join(value) if isinstance(value, list) else str(value)
        for name, value in {**document["machine"], **document.get("conditions", {})}.items()
        if value
    }
    source = document["git_commit"] or "an installed package"
    return [
        ("made", document["created"]),
        ("source tree", source),
        *facts.items(),
        *document["versions"].items(),
    ]


def _size_table(sizes: Sequence[Row]) -> list[dict[str, Any]]:
    """One line for each part: parameters of each model, and the share of the dense model's."""
    if not sizes:
        return []
    lines = []
    dense = sizes[0]["parameters_by_part"]
    for part in dense:
        counts = [item["parameters_by_part"].get(part, 0) for item in sizes]
        if any(counts):
            lines.append({"part": part_name(part), "cells": _with_shares(counts, dense[part])})
    totals = [item["parameters"] for item in sizes]
    lines.append({"part": "all", "cells": _with_shares(totals, totals[0])})
    return lines


def _with_shares(counts: Sequence[int], dense: int) -> list[dict[str, Any]]:
    return [{"count": count, "share": count / dense if dense else None} for count in counts]


def _threads(latency: Sequence[Row]) -> str:
    counts = sorted({row["threads"] for row in latency})
    return (
        " or ".join(f"{count} thread{'s' if count > 1 else ''}" for count in counts) or "no threads"
    )


def _status(verdict: Mapping[str, Any]) -> str:
    """Colour of the verdict: ``held``, ``missed``, ``undecided``, or ``none`` without targets."""
    if verdict["ok"]:
        return "held" if verdict["claims"] else "none"
    outcomes = {claim["outcome"] for claim in verdict["claims"]}
    return "missed" if "missed" in outcomes else "undecided"


def _facts(
    accuracy: Sequence[Row], latency: Sequence[Row], dense: str, pruned: str
) -> list[dict[str, str]]:
    """The few numbers at the top, from the first runtime that is not only the reference."""
    found = [_first(accuracy, model) for model in (dense, pruned)]
    faster = _first([row for row in latency if row.get("speedup")], pruned)
    facts: list[dict[str, str]] = []
    if found[0] and found[1]:
        facts += _size_facts(found[0], found[1])
    if faster:
        facts.insert(
            1,
            {
                "name": "Speedup",
                "value": f"{faster['speedup']:.2f}{_TIMES}",
                "detail": f"{faster['speedup_low']:.2f} to {faster['speedup_high']:.2f}, "
                f"{faster['runtime']} at {faster['batch_size']}{_TIMES}{faster['seq_len']}",
            },
        )
    return facts


def _size_facts(dense: Row, pruned: Row) -> list[dict[str, str]]:
    facts = [
        {
            "name": str(pruned["metric_name"]),
            "value": f"{pruned['metric']:.4f}",
            "detail": f"dense {dense['metric']:.4f}: {_points(pruned['metric'] - dense['metric'])}",
        },
        {
            "name": "Size",
            "value": _mib(pruned["size_bytes"]),
            "detail": f"dense {_mib(dense['size_bytes'])}",
        },
        {
            "name": "Encoder pruned",
            "value": f"{pruned['realized_sparsity']:.1%}",
            "detail": "of attention and FFN parameters",
        },
    ]
    if "parameters" in pruned and "parameters" in dense:
        facts.append(
            {
                "name": "Parameters",
                "value": _millions(pruned["parameters"]),
                "detail": f"dense {_millions(dense['parameters'])}",
            }
        )
    return facts


def _first(rows: Sequence[Row], model: str) -> Row | None:
    own = [row for row in rows if row["model"] == model]
    served = [row for row in own if row["runtime"] != "torch"]
    return next(iter(served or own), None)


def _structures(structures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pruned models' pictures; a dense one would only be full."""
    drawn = []
    for index, (label, data) in enumerate(structures.items()):
        arch = Arch.from_json(data)
        if not arch.is_dense:
            svg = structure_svg(arch, name=f"structure-{index}")
            drawn.append({"label": label, "svg": svg})
    return drawn


def _points(difference: float, unit: str = " points") -> str:
    return f"{difference * 100:+.2f}{unit}".replace("-", _MINUS)


def _times(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2f}{_TIMES}"


def _mib(size: float | None) -> str:
    return _MISSING if size is None else f"{size / 2**20:.1f} MiB"


def _millions(count: float | None) -> str:
    return _MISSING if count is None else f"{count / 1e6:.2f} M"


def _ms(value: float | None) -> str:
    if value is None:
        return _MISSING
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}".rstrip(".")


def _fixed(value: float | None, digits: int = 4) -> str:
    return _MISSING if value is None else f"{value:.{digits}f}"


def _short(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.2g}"


def _whole(value: float | None) -> str:
    return _MISSING if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return _MISSING if value is None else f"{value:.1%}"


_FILTERS = {
    "times": _times,
    "part": part_name,
    "share": _share,
    "points": _points,
    "mib": _mib,
    "millions": _millions,
    "ms": _ms,
    "fixed": _fixed,
    "short": _short,
    "whole": _whole,
}
