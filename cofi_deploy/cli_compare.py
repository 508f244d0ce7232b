"""The command line of `compare`: parse, call one function of `api`, print."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cofi_deploy.cli_options import common_options, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from cofi_deploy.serve.comparison import Comparison, Finding

_FILE = click.Path(path_type=Path, dir_okay=False)
_SHOWN_ROWS = 10
_STYLES = {"worse": "bold red", "vanished": "red", "better": "green", "new": "green"}


@click.command()
@click.argument("baseline", type=_FILE)
@click.argument("candidate", type=_FILE)
@click.option(
    "--max-metric-drop",
    type=float,
    default=0.5,
    show_default=True,
    help="Points that metric and agreement may lose even if that is no chance.",
)
@click.option(
    "--max-slowdown",
    type=float,
    default=0.1,
    show_default=True,
    help="Fraction that p50_ms may grow or a speedup shrink; p90 twice, p99 three times that.",
)
@click.option(
    "--max-growth",
    type=float,
    default=0.02,
    show_default=True,
    help="Fraction that size and parameters may grow; peak memory five times that.",
)
@click.option(
    "--require-all/--allow-missing",
    default=True,
    show_default=True,
    help="Whether what CANDIDATE no longer measures is a failure.",
)
@click.option(
    "--ignore",
    multiple=True,
    metavar="KEY",
    help="Key that does not tell rows apart, such as model or seed; repeatable.",
)
@click.option("--junit", type=_FILE, help="Also write JUnit XML, for a CI system.")
@click.option("--output", type=_FILE, help="JSON file, instead of standard output.")
@common_options
def compare(baseline: Path, candidate: Path, **flags: Any) -> None:
    """What changed from BASELINE to CANDIDATE, two result files; exit 1 if anything is worse.

    A change counts when it is outside of the interval and larger than tolerated. Latencies
    compare only between equal machines and versions.

    \b
    cofi-deploy compare baseline.json verify.json
    cofi-deploy compare baseline.json verify.json --max-metric-drop 1 --junit compare.xml
    cofi-deploy compare old-bench.json new-bench.json --ignore model --max-slowdown 0.2
    """
    from cofi_deploy.api import comparing
    from cofi_deploy.serve.quantities import Tolerances

    comparison = comparing.compare(
        baseline,
        candidate,
        tolerances=Tolerances(
            max_metric_drop=flags["max_metric_drop"],
            max_slowdown=flags["max_slowdown"],
            max_growth=flags["max_growth"],
        ),
        ignore=flags["ignore"],
        require_all=flags["require_all"],
        junit=flags["junit"],
    )
    _print_comparison(comparison)
    if flags["output"] is None:
        print_json(comparing.comparison_document(comparison, baseline, candidate))
    else:
        comparing.write_comparison(flags["output"], comparison, baseline, candidate)
    if not comparison.ok:
        sys.exit(1)


def _print_comparison(comparison: Comparison) -> None:
    from rich.console import Console

    from cofi_deploy.serve.comparison import name_of

    console = Console(stderr=True, markup=False)
    counts = comparison.counts()
    changed = [one for one in comparison.findings if one.verdict in _STYLES]
    if changed:
        console.print(_table(changed, comparison.told_apart))
    for what, rows in (("not measured again", comparison.vanished), ("new", comparison.new)):
        for identity in rows[:_SHOWN_ROWS]:
            console.print(
                f"{what}: {name_of(identity, comparison.told_apart)}", highlight=False, markup=False
            )
        if len(rows) > _SHOWN_ROWS:
            console.print(f"{what}: {len(rows) - _SHOWN_ROWS} more rows", highlight=False)
    reasons = Counter(
        one.judgement.reason for one in comparison.findings if one.verdict == "not comparable"
    )
    for reason, count in reasons.most_common(_SHOWN_ROWS):
        console.print(
            f"not comparable: {count} quantities, {reason}", highlight=False, markup=False
        )
    for note in comparison.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    console.print(
        f"{counts['same']} quantities are the same, {counts['better']} better, "
        f"{counts['worse']} worse, {counts['not comparable']} not comparable",
        highlight=False,
    )
    console.print(comparison.sentence, highlight=False, markup=False)


def _table(changed: list[Finding], told_apart: tuple[str, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from cofi_deploy.serve.comparison import name_of

    table = Table(title="What changed", title_justify="left")
    for column in ("", "row", "quantity", "numbers"):
        table.add_column(column, overflow="fold")
    for one in changed:
        table.add_row(
            Text(one.verdict, style=_STYLES[one.verdict]),
            Text(name_of(one.identity, told_apart)),
            Text(one.quantity),
            Text(one.judgement.reason),
        )
    return table
