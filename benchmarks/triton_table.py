"""The README's tables of what `triton_serving.py` measured; called by `tables.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
FEWEST_SEARCHES = 3  # that give an interval

_FAULTS = {
    "malformed": "{malformed:,} malformed requests of {kinds} kinds among them",
    "crashing": "{ended} that end the process of this server",
    "server_killed": "kill -9 of the server, started again ({down_s:.1f} s)",
    "stub_killed": "kill -9 of the model's Python process, server started again",
    "disk_full": "full disk; an export onto it refused, later done",
    "corrupt_version": "{corrupt} corrupt versions refused, a good one taken",
}


def triton_table(document: Mapping[str, Any]) -> str:
    """Highest rates, the closed loop, faults, and the conditions of them all."""
    rows: Sequence[Row] = document["rows"]
    parts = [
        _highest([row for row in rows if row.get("load") == "highest"], document),
        _closed([row for row in rows if row.get("load") == "closed"]),
        _faults([row for row in rows if "fault" in row]),
        _conditions(document),
    ]
    return "\n\n".join(part for part in parts if part)


def _highest(rows: Sequence[Row], document: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    lines = [
        f"Requests per second, arriving at random, with 99 % answered within "
        f"{rows[0]['limit_ms']:g} ms (the p99 seen, and of how many); times dense with its 95 % "
        "interval:",
        "",
        "| requests | dense | pruned | times dense |",
        "|---|---|---|---|",
    ]
    for dense, pruned in _pairs(rows):
        lines.append(
            f"| {_requests(dense, document)} | {_held(dense)} | {_held(pruned)} | "
            f"{_times_dense(pruned)} |"
        )
    return "\n".join(lines)


def _times_dense(row: Row) -> str:
    """The ratio; with its interval where there are enough searches to speak of one."""
    searches = len(row["found_per_s"])
    if row["speedup"] is None:
        return "one of them holds nothing"
    if searches < FEWEST_SEARCHES:
        return f"{row['speedup']:.1f}x ({searches} searches)"
    return f"{row['speedup']:.1f}x ({row['speedup_low']:.1f} to {row['speedup_high']:.1f})"


def _closed(rows: Sequence[Row]) -> str:
    chosen = [row for row in rows if isinstance(row["seq_len"], int) and row["model"] != "trivial"]
    if not chosen:
        return ""
    lines = [
        f"Clients that send token ids, {chosen[0]['seq_len']} tokens, one request at a time each:",
        "",
        "| clients | dense: per second | p50 / p95 / p99 ms | mean batch "
        "| pruned: per second | p50 / p95 / p99 ms | mean batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for dense, pruned in _pairs(chosen):
        lines.append(f"| {dense['clients']} | {_load(dense)} | {_load(pruned)} |")
    return "\n".join([*lines, "", _most(chosen)])


def _most(rows: Sequence[Row]) -> str:
    """What each model holds when nobody waits for an answer in time."""
    most = {
        model: max((row["sequences_per_s"] for row in rows if row["model"] == model), default=0.0)
        for model in ("dense", "pruned")
    }
    return (
        f"At most, whatever the latency: {most['dense']:.0f} per second dense, "
        f"{most['pruned']:.0f} pruned."
    )


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Dense and pruned under the same load."""

    def load(row: Row) -> tuple[Any, ...]:
        return row["requests"], row["seq_len"], row.get("clients")

    dense = [row for row in rows if row["model"] == "dense"]
    pruned = {load(row): row for row in rows if row["model"] == "pruned"}
    return [(row, pruned[load(row)]) for row in dense if load(row) in pruned]


def _requests(row: Row, document: Mapping[str, Any]) -> str:
    if isinstance(row["seq_len"], int):
        return f"{row['requests']}, {row['seq_len']} tokens"
    return f"{row['requests']}, {row['task']} (mean {document['mean_length']:.0f} tokens)"


def _held(row: Row) -> str:
    return f"{row['sequences_per_s']:.0f} ({row['p99_ms']:.0f} ms of {row['examples']:,})"


def _load(row: Row) -> str:
    percentiles = " / ".join(_short(row[f"p{percent}_ms"]) for percent in (50, 95, 99))
    return f"{row['sequences_per_s']:.0f} | {percentiles} | {row['mean_batch_size']:.1f}"


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _faults(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = [
        "Good requests while something goes wrong; clients ask again until they are answered "
        "where the server is gone:",
        "",
        "| fault | good requests | wrong | lost | as it must be |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        if row.get("held") is None:
            continue
        details = {
            **row,
            "ended": len(row.get("ended_by", ())),
            "corrupt": len(row.get("refused", ())),
        }
        lines.append(
            f"| {_FAULTS[row['fault']].format(**details)} | {row['sent']:,} | {row['wrong']} | "
            f"{row['lost']} | {'yes' if row['held'] else '**no**'} |"
        )
    return "\n".join(lines)


def _conditions(document: Mapping[str, Any]) -> str:
    rows: Sequence[Row] = document["rows"]
    loads = [row for row in rows if "load" in row]
    if not loads:
        return ""
    machine, versions = document["machine"], document["versions"]
    first = loads[0]
    ceiling = [row["sequences_per_s"] for row in loads if row["model"] == "trivial"]
    busiest = max(row["generator_cores"] for row in loads if row["model"] != "trivial")
    asked = sum(row["sent"] for row in loads)
    wrong = sum(row["wrong"] for row in loads)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, shared by server and generator (at most "
        f"{busiest:.2f} of them for it); {first['instances']} instance on "
        f"{first['threads'] or 'all'} cores, {first['precision']}, Triton's {first['backend']} "
        f"backend, onnxruntime {versions['onnxruntime']}. The same path holds "
        f"{max(ceiling, default=0):.0f} per second with a model that computes next to nothing. "
        f"Wrong answers: {wrong} of {asked:,}."
    )
