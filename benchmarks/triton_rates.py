"""How much a served model holds: a closed loop, and the highest rate that keeps a latency.

In: a running server with a dense and a pruned model, and what to ask them. Out: rows of a result
file, dense and pruned measured in turn. Next: `triton_serving.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from triton_cases import FIXED_LENGTH, Case, Cases
from triton_load import Bisection, Load, closed_loop, open_loop
from triton_watch import Usage, usage

MODELS = ("dense", "pruned")
LIMIT_MS = 50.0
PRECISION = 1.1  # of the highest rate
LOWEST_RATE = 1.0  # per second; a search that falls below it has found nothing
MOST_PROBES = 16  # of one search; a server that passes nothing must not be asked for ever

Row = dict[str, Any]
Seen = tuple[Load, Usage]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How long and how often; the defaults take about twelve minutes on two idle cores.

    A probe must ask enough for a p99 to mean something: of 50 requests a single slow one decides,
    which makes a model that holds few requests a second look worse than it is.

    Attributes:
        texts: Requests that differ.
        window_s: Of one load of the closed loop.
        probe_s: Shortest and longest time of one rate of the open loop.
        probe_requests: What a rate is asked, if it can be done in ``probe_s``.
        warm_up_s: Before every window and probe.
        repeats: Of every window, and of the rate that is reported.
        searches: For the highest rate, dense and pruned in turn.
        clients: Of the closed loop, token ids of fixed length.
        few_clients: The same with real lengths, token ids and text.
        fault_requests: Malformed requests.
        fault_s: Time under load of each other fault.
    """

    texts: int = 256
    window_s: float = 1.5
    probe_s: tuple[float, float] = (3.0, 40.0)
    probe_requests: int = 300
    warm_up_s: float = 0.5
    repeats: int = 3
    searches: int = 3
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    few_clients: tuple[int, ...] = (1, 8, 64)
    fault_requests: int = 10_000
    fault_s: float = 8.0

    def scaled(self, factor: float) -> Size:
        """The same loads, each so many times as long."""
        shortest, longest = self.probe_s
        return replace(
            self,
            window_s=self.window_s * factor,
            probe_s=(shortest * factor, longest * factor),
            probe_requests=round(self.probe_requests * factor),
        )


QUICK = Size(
    texts=24,
    window_s=0.5,
    probe_s=(0.5, 1.0),
    probe_requests=40,
    warm_up_s=0.2,
    repeats=2,
    searches=2,
    clients=(1, 4),
    few_clients=(4,),
    fault_requests=300,
    fault_s=2.0,
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to ask a model."""

    name: str  # of the field of `Cases`
    seq_len: int | str  # tokens, or `task` for the texts' own lengths
    suffix: str = ""  # of the model's name on the server

    def cases(self, cases: Cases) -> tuple[Case, ...]:
        """Its requests."""
        chosen: tuple[Case, ...] = getattr(cases, self.name)
        return chosen


FIXED = Kind(name="fixed", seq_len=FIXED_LENGTH)
IDS = Kind(name="ids", seq_len="task")
TEXT = Kind(name="text", seq_len="task", suffix="_text")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A running server, what it is asked, and for how long."""

    url: str
    pid: int
    cases: dict[str, Cases]
    size: Size
    facts: dict[str, dict[str, Any]]  # what every row of a model says

    def closed(self, kind: Kind, model: str, clients: int) -> Seen:
        """One window of a closed loop."""
        with usage(self.url, self.pid, model) as used:
            load = closed_loop(
                self.url,
                model + kind.suffix,
                kind.cases(self.cases[model]),
                clients=clients,
                seconds=self.size.window_s,
                warm_up_s=self.size.warm_up_s,
            )
            return load, used()

    def open(self, kind: Kind, model: str, rate: float, seed: int) -> Seen:
        """One window of an open loop; ends early when its p99 is sure to miss the limit."""
        shortest, longest = self.size.probe_s
        with usage(self.url, self.pid, model) as used:
            load = open_loop(
                self.url,
                model + kind.suffix,
                kind.cases(self.cases[model]),
                rate=rate,
                seconds=min(longest, max(shortest, self.size.probe_requests / rate)),
                warm_up_s=self.size.warm_up_s,
                seed=seed,
                limit_ms=LIMIT_MS,
            )
            return load, used()

    def row(self, kind: Kind, model: str, loads: Sequence[Seen]) -> Row:
        """What the repeats of one load say together."""
        pooled, used = Load(), Usage()
        for load, seen in loads:
            pooled.add(load)
            used.add(seen)
        rates = [load.answered / load.seconds for load, _ in loads]
        return {
            **self.facts[model],
            "requests": "text" if kind.suffix else "token ids",
            "batch_size": 1,
            "seq_len": kind.seq_len,
            "examples": pooled.answered,
            "sequences_per_s": pooled.answered / pooled.seconds,
            "sequences_per_s_low": min(rates),
            "sequences_per_s_high": max(rates),
            **{f"p{p}_ms": pooled.percentile_ms(p) for p in (50, 90, 95, 99)},
            "sent": pooled.sent,
            "wrong": pooled.wrong,
            "errors": dict(pooled.errors),
            "late_p99_ms": float(np.percentile(pooled.late_ms, 99)) if pooled.late_ms else None,
            "mean_batch_size": used.mean_batch_size,
            "batches": {str(size): used.batches[size] for size in sorted(used.batches)},
            "queue_ms": used.queue_ms,
            "compute_ms": used.compute_ms,
            "server_cores": used.server_cpu_s / used.seconds,
            "generator_cores": pooled.client_cpu_s / pooled.seconds,
            "peak_memory_mib": used.memory_mib,
            "repeats": len(loads),
            "wall_s": pooled.seconds,
        }


def closed_loops(
    bench: Bench, kind: Kind, clients: Sequence[int], *, models: Sequence[str] = MODELS
) -> list[Row]:
    """A row for each model and number of clients; repeats far apart, models side by side."""
    seen: dict[tuple[int, str], list[Seen]] = {}
    for _ in range(bench.size.repeats):
        for count in clients:
            for model in models:
                seen.setdefault((count, model), []).append(bench.closed(kind, model, count))
    rows = []
    for (count, model), loads in seen.items():
        rows.append({**bench.row(kind, model, loads), "load": "closed", "clients": count})
        say(rows[-1], f"{count} clients")
    return rows


def highest_rates(bench: Bench, kind: Kind, searches: int) -> list[Row]:
    """The highest rate of each model whose p99 is below the limit, and their ratio.

    Every search takes dense and pruned in turn, probe by probe, and gives one ratio; the interval
    is that of Student's t over their logarithms. The rate in a model's row is the median of the
    searches, or less: it is asked again, and lowered until its repeats together keep the limit.
    """
    rows: list[Row] = []
    found: dict[str, list[float]] = {model: [] for model in MODELS}
    start = {model: _guess(bench, kind, model) for model in MODELS}
    for number in range(searches):
        step = 1.5 if number == 0 else 1.2
        states = {
            model: Bisection(rate=start[model], step=step, precision=PRECISION) for model in MODELS
        }
        _search(bench, kind, states, rows, seed=number)
        for model, state in states.items():
            found[model].append(state.passed or 0.0)
            start[model] = state.passed or start[model]
    held = {model: _held(bench, kind, model, found[model]) for model in MODELS}
    ratio = _ratio(found["dense"], found["pruned"])
    for model, row in held.items():
        more = {"load": "highest", "limit_ms": LIMIT_MS, "found_per_s": found[model]}
        rows.append({**row, **more, **(ratio if model == "pruned" else {})})
        say(rows[-1], f"p99 below {LIMIT_MS:g} ms")
    return rows


def _search(
    bench: Bench,
    kind: Kind,
    states: dict[str, Bisection],
    rows: list[Row],
    *,
    seed: int,
) -> None:
    for probe in range(MOST_PROBES):
        for model, state in states.items():
            if state.done or state.rate < LOWEST_RATE:
                continue
            rate = state.rate
            seen = bench.open(kind, model, rate, seed=1000 * seed + probe)
            state.tell(passed=keeps(seen[0]))
            row = {**bench.row(kind, model, [seen]), "load": "open", "rate_per_s": rate}
            rows.append({**row, "stopped_early": seen[0].stopped_early})
            say(rows[-1], f"{rate:.0f}/s{'' if keeps(seen[0]) else ': too much'}")


def keeps(load: Load) -> bool:
    """Whether 99 % of the answers came in time, all were right and none was missing."""
    clean = not load.wrong and not load.errors and not load.stopped_early
    return clean and load.percentile_ms(99) < LIMIT_MS


def _held(bench: Bench, kind: Kind, model: str, found: Sequence[float]) -> Row:
    """Ask for the median rate again, on other arrival times, and go down until it is kept."""
    rate = max(LOWEST_RATE, float(np.median(found)))
    for attempt in range(MOST_PROBES):
        loads = [
            bench.open(kind, model, rate, seed=10**6 + 100 * attempt + repeat)
            for repeat in range(bench.size.repeats)
        ]
        pooled = Load()
        for load, _ in loads:
            pooled.add(load)
        if keeps(pooled):
            break
        rate /= PRECISION
    return {**bench.row(kind, model, loads), "rate_per_s": rate}


def _guess(bench: Bench, kind: Kind, model: str) -> float:
    """Where to start: half of what two clients get."""
    load, _ = bench.closed(kind, model, 2)
    return max(1.0, 0.5 * load.answered / load.seconds)


def _ratio(dense: Sequence[float], pruned: Sequence[float]) -> Row:
    low = high = None
    if not all(dense) or not all(pruned):
        return {"speedup": None, "speedup_low": low, "speedup_high": high}
    logs = np.log(np.asarray(pruned) / np.asarray(dense))
    if len(logs) > 2:  # two leave one degree of freedom: an interval without meaning
        half = stats.t.ppf(0.975, len(logs) - 1) * stats.sem(logs)
        low, high = np.exp(logs.mean() - half), np.exp(logs.mean() + half)
    return {"speedup": float(np.exp(logs.mean())), "speedup_low": low, "speedup_high": high}


def say(row: Row, what: str) -> None:
    """One line for a person."""
    speedup = f", {row['speedup']:.1f} times dense" if row.get("speedup") else ""
    print(
        f"{row['model']:7} {row['requests']} x {row['seq_len']}, {what}: "
        f"{row['sequences_per_s']:.0f}/s, p50 {row['p50_ms']:.1f} p99 {row['p99_ms']:.1f} ms, "
        f"batches of {row['mean_batch_size']:.1f}, wrong {row['wrong']}, "
        f"errors {sum(row['errors'].values())}{speedup}",
        flush=True,
    )
