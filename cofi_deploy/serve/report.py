"""`report.html`: one self-contained page that shows what `verify.json` says.

In: the document that `verify.py` writes, and steps of a ``metrics.jsonl``. Out: HTML without
scripts or external files, for screen (light, dark, phone), print and screen readers. The page is
`templates/report.html.j2`, its pictures are in `charts.py` and `curves.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from cofi_deploy.arch import Arch
from cofi_deploy.serve.charts import accuracy_against_speedup, latency_strips
from cofi_deploy.serve.curves import training_curves
from cofi_deploy.structure_svg import structure_svg

Row = Mapping[str, Any]

# Typographic characters by name: they look like others in source code.
_MISSING = "\N{EN DASH}"
_TIMES = "\N{MULTIPLICATION SIGN}"
_MINUS = "\N{MINUS SIGN}"


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
    dense, pruned = document["dense"], document["judged"]
    verdict = document["verdict"]
    of_pruned = [row for row in accuracy if row["model"] == pruned]
    return {
        "document": document,
        "verdict": verdict,
        "status": _status(verdict),
        "task": accuracy[0]["task"] if accuracy else "",
        "dense": dense,
        "pruned": pruned,
        "facts": _facts(accuracy, latency, dense, pruned),
        "accuracy": accuracy,
        "latency": latency,
        "threads": _threads(latency),
        "has_probes": any("load_ms" in row for row in latency),
        "pictures": _pictures(
            document, of_pruned, [row for row in latency if row["model"] == pruned], dense
        ),
        "structures": _structures(document["structures"]),
        "curves": training_curves(steps),
        "comparison": next(
            (item for item in document["comparisons"] if item["model"] == pruned), None
        ),
    }


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


def _pictures(
    document: Mapping[str, Any], accuracy: Sequence[Row], latency: Sequence[Row], dense: str
) -> list[dict[str, Any]]:
    targets = {claim["claim"]: claim["asked"] for claim in document["verdict"]["claims"]}
    drawn = (
        (
            "Accuracy against speedup",
            "Up and right is better. Whiskers are 95 % intervals; labels are batch x length.",
            accuracy_against_speedup(accuracy, latency, targets=targets),
        ),
        (
            "Latency distributions",
            "Tick: median. Bar: 10th to 90th percentile. Line: 1st to 99th.",
            latency_strips(document["latency_samples"], dense),
        ),
    )
    return [
        {"title": title, "caption": caption, "svg": svg}
        for title, caption, svg in drawn
        if svg is not None
    ]


def _structures(structures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The pruned model's picture; a dense one would only be full."""
    drawn = []
    for index, (label, data) in enumerate(structures.items()):
        arch = Arch.from_json(data)
        if not arch.is_dense:
            svg = structure_svg(arch, name=f"structure-{index}")
            drawn.append({"label": label, "svg": svg})
    return drawn


def _points(difference: float) -> str:
    return f"{difference * 100:+.2f} points".replace("-", _MINUS)


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


_FILTERS = {
    "points": _points,
    "mib": _mib,
    "millions": _millions,
    "ms": _ms,
    "fixed": _fixed,
    "short": _short,
    "whole": _whole,
}
