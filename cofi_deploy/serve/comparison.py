"""Two result files: which rows belong together, what changed, and may this be merged?

In: two documents in the form of `results.py`, baseline first. Out: a `Comparison`. Pure: reads and
writes nothing. Each quantity is judged in `quantities.py`. Next file: `junit.py`.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cofi_deploy.serve.quantities import (
    QUANTITIES,
    Judgement,
    Paired,
    Row,
    Tolerances,
    Verdict,
    judge,
)

# What tells the rows of one file apart, and what only says how a row was measured: an older file
# may lack the latter. `parameters`, `base_model`, `recipe` and the like are properties of what was
# measured there: they may change.
_PLACE = (
    "model", "metric_name", "runtime", "batch_size", "seq_len", "clients", "rate_per_s",
    "limit_ms", "fault",
)  # fmt: skip
_CIRCUMSTANCES = (
    "task", "split", "seed", "target_sparsity", "target_speedup", "backend", "precision",
    "device", "threads", "instances", "requests", "load",
)  # fmt: skip
IDENTITY = (*_PLACE, *_CIRCUMSTANCES)
# Differs wherever the model or the kind of row does, and is said by those already.
_IN_NAME = (
    "model", "runtime", "batch_size", "seq_len", "metric_name", "target_sparsity",
    "target_speedup", "split",
)  # fmt: skip
# What times depend on. A newer cofi-deploy is what is being tested, so its own version may differ.
_MACHINE = ("cpu", "cpu_flags", "cores", "gpu")
_OWN = "cofi-deploy"
_ORDER: tuple[Verdict, ...] = ("worse", "vanished", "better", "new", "not comparable", "same")

Identity = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One quantity of one pair of rows."""

    identity: Identity
    quantity: str
    baseline: float | None
    candidate: float | None
    judgement: Judgement

    @property
    def verdict(self) -> Verdict:
        """Better, worse, the same, or why that is not told."""
        return self.judgement.verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that changed; `findings` has the worse ones first.

    ``vanished`` and ``new`` are rows of the baseline and of the candidate alone; ``ambiguous`` are
    rows that occur several times in one file, so that no pair of them can be told. ``told_apart``
    are the keys beside model, runtime and shape in which rows differ.
    """

    ok: bool
    sentence: str
    findings: tuple[Finding, ...]
    vanished: tuple[Identity, ...]
    new: tuple[Identity, ...]
    ambiguous: tuple[Identity, ...]
    notes: tuple[str, ...]
    require_all: bool
    told_apart: tuple[str, ...]

    def counts(self) -> dict[Verdict, int]:
        """Findings of each verdict."""
        found = Counter(finding.verdict for finding in self.findings)
        return {verdict: found[verdict] for verdict in _ORDER}


def compare(
    baseline: Mapping[str, Any],
    candidate: Mapping[str, Any],
    tolerances: Tolerances,
    *,
    ignore: Collection[str] = (),
    require_all: bool = True,
) -> Comparison:
    """Match the rows of two result files and judge every quantity.

    Args:
        baseline: What was accepted before.
        candidate: What is asked about.
        tolerances: Changes that are accepted.
        ignore: Keys that do not tell rows apart, for example ``model`` where it has a date in it.
        require_all: Whether a row or quantity of the baseline that the candidate lacks is a
            failure: a gate that measures less and less must not stay green.
    """
    sides = (baseline["rows"], candidate["rows"])
    keys = _shared_keys(sides, ignore)
    pairs, alone, ambiguous = _match(sides, keys)
    elsewhere = _elsewhere(baseline, candidate)
    paired = (_paired_tests(baseline), _paired_tests(candidate))
    findings = [
        Finding(
            identity=identity,
            quantity=quantity.name,
            baseline=_finite(rows[0].get(quantity.name)),
            candidate=_finite(rows[1].get(quantity.name)),
            judgement=judgement,
        )
        for identity, rows in pairs
        for quantity in QUANTITIES
        if (judgement := judge(quantity, rows, tolerances, elsewhere=elsewhere, paired=paired))
    ]
    names = [quantity.name for quantity in QUANTITIES]
    findings.sort(
        key=lambda one: (
            _ORDER.index(one.verdict),
            names.index(one.quantity),
            _canonical(one.identity),
        )
    )
    told_apart = _told_apart([*(identity for identity, _ in pairs), *alone[0], *alone[1]])
    lost = [*alone[0], *(one for one in findings if one.verdict == "vanished")]
    worse = [one for one in findings if one.verdict == "worse"]
    return Comparison(
        ok=not worse and not (require_all and lost),
        sentence=_sentence(findings, len(lost), told_apart, require_all=require_all),
        findings=tuple(findings),
        vanished=alone[0],
        new=alone[1],
        ambiguous=ambiguous,
        notes=tuple(_notes(baseline, candidate, elsewhere, ambiguous)),
        require_all=require_all,
        told_apart=told_apart,
    )


def name_of(identity: Identity, told_apart: Collection[str] = ()) -> str:
    """A row in words: model, runtime, shape, then what else tells it from the others."""
    shape = "x".join(str(identity[key]) for key in ("batch_size", "seq_len") if key in identity)
    first = [str(identity[key]) for key in ("model", "runtime") if key in identity]
    rest = [f"{key} {identity[key]}" for key in told_apart if key in identity]
    return " ".join([*first, *([shape] if shape else []), *rest]) or "the only row"


def _told_apart(identities: Sequence[Identity]) -> tuple[str, ...]:
    """Keys beside model, runtime and shape in which rows differ."""
    values: dict[str, set[str]] = defaultdict(set)
    for identity in identities:
        for key in IDENTITY:
            values[key].add(_canonical({key: identity.get(key)}))
    return tuple(key for key in IDENTITY if len(values[key]) > 1 and key not in _IN_NAME)


def _shared_keys(sides: Sequence[Sequence[Row]], ignore: Collection[str]) -> list[str]:
    """Keys that tell rows apart, less those circumstances that only one file knows."""
    known = [{key for row in rows for key in row} for rows in sides]
    shared = [*_PLACE, *(key for key in _CIRCUMSTANCES if all(key in side for side in known))]
    return [key for key in shared if key not in ignore]


_Pairs = list[tuple[Identity, tuple[Row, Row]]]
_Alone = tuple[tuple[Identity, ...], tuple[Identity, ...]]


def _match(
    sides: Sequence[Sequence[Row]], keys: Sequence[str]
) -> tuple[_Pairs, _Alone, tuple[Identity, ...]]:
    """Rows of both files in pairs, the identities of the others, and those that are not unique."""
    # An answer does not depend on the number of threads: a metric from a machine with more cores
    # compares, unless the file has it for several.
    loose = _grouped(sides, keys, without_threads=True)
    groups: dict[str, tuple[list[Row], list[Row]]] = {}
    for key, rows in loose.items():
        unique = max(map(len, rows)) == 1
        groups |= {key: rows} if unique else _grouped(rows, keys, without_threads=False)
    pairs: _Pairs = []
    alone: tuple[list[Identity], list[Identity]] = ([], [])
    ambiguous: list[Identity] = []
    for key in sorted(groups):
        rows = groups[key]
        identity = _identity((rows[0] or rows[1])[0], keys)
        if max(map(len, rows)) > 1:
            ambiguous.append(identity)
        elif rows[0] and rows[1]:
            pairs.append((identity, (rows[0][0], rows[1][0])))
        else:
            alone[0 if rows[0] else 1].append(identity)
    return pairs, (tuple(alone[0]), tuple(alone[1])), tuple(ambiguous)


def _grouped(
    sides: Sequence[Sequence[Row]], keys: Sequence[str], *, without_threads: bool
) -> dict[str, tuple[list[Row], list[Row]]]:
    groups: dict[str, tuple[list[Row], list[Row]]] = defaultdict(lambda: ([], []))
    for side, rows in enumerate(sides):
        for row in rows:
            identity = _identity(row, keys)
            if without_threads and "metric" in row:
                identity.pop("threads", None)
            groups[_canonical(identity)][side].append(row)
    return groups


def _identity(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    found = {key: row[key] for key in keys if row.get(key) is not None}
    if found.get("load") != "open":  # elsewhere the rate is what was found, not what was asked
        found.pop("rate_per_s", None)
    return {key: _plain(value) for key, value in found.items()}


def _plain(value: Any) -> Any:
    """What JSON can hold again; 128 and 128.0 are one shape."""
    if isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        return value if math.isfinite(value) else str(value)
    return json.dumps(value, sort_keys=True, default=str)


def _canonical(identity: Identity) -> str:
    return json.dumps(identity, sort_keys=True)


def _finite(value: Any) -> float | None:
    """The number as it stands in the file, where JSON can hold it again."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _elsewhere(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Why times and memory of the two files do not compare; empty where they do."""
    machines = [_mapping(document, "machine") for document in (baseline, candidate)]
    if not all(machines):
        return "a file does not say on which machine it was made"
    for name in _MACHINE:
        one, other = (machine.get(name) for machine in machines)
        if one != other:
            return f"other machine: {name} {_told(one)} became {_told(other)}"
    changed = _changed_versions(baseline, candidate)
    return f"other versions: {', '.join(changed)}" if changed else ""


def _changed_versions(baseline: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[str]:
    one, other = (_mapping(document, "versions") for document in (baseline, candidate))
    return [
        f"{name} {_told(one.get(name))} became {_told(other.get(name))}"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name) and name != _OWN
    ]


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = document.get(key)
    return found if isinstance(found, Mapping) else {}


def _told(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _paired_tests(document: Mapping[str, Any]) -> list[Paired]:
    """The paired tests of a verify.json: of one runtime, and behind each claim about a drop."""
    comparison = _mapping(document, "comparison")
    test = {**_mapping(comparison, "test"), "runtime": comparison.get("runtime")}
    found = [_paired(test, ("difference", "low", "high"), 1.0)]
    claims = _mapping(document, "verdict").get("claims")
    for claim in claims if isinstance(claims, list) else []:
        if isinstance(claim, Mapping) and claim.get("claim") == "max_drop":
            # A drop in points: its sign and its ends are the other way round.
            found.append(_paired(claim, ("measured", "high", "low"), -0.01))
    return [each for each in found if each is not None]


def _paired(test: Mapping[str, Any], names: Iterable[str], scale: float) -> Paired | None:
    values = [_finite(test.get(name)) for name in names]
    if not isinstance(test.get("runtime"), str) or None in values:
        return None
    difference, low, high = (float(value) * scale for value in values if value is not None)
    return Paired(runtime=test["runtime"], difference=difference, low=low, high=high)


def _notes(
    baseline: Mapping[str, Any],
    candidate: Mapping[str, Any],
    elsewhere: str,
    ambiguous: Sequence[Identity],
) -> Iterable[str]:
    one, other = (document.get("schema_version") for document in (baseline, candidate))
    if one != other:
        yield f"the files have different schemas: {_told(one)} became {_told(other)}"
    if elsewhere:
        yield f"times and memory are not compared, {elsewhere}"
    if elsewhere.startswith("other machine"):
        yield "speedups are ratios within one machine; on another one they may differ rightly"
        changed = _changed_versions(baseline, candidate)
        if changed:
            yield f"versions changed too: {', '.join(changed)}"
    if ambiguous:
        yield (
            f"{len(ambiguous)} places are measured several times in one file and were left out, "
            f"the first: {name_of(ambiguous[0])}"
        )


def _sentence(
    findings: Sequence[Finding], lost: int, told_apart: Collection[str], *, require_all: bool
) -> str:
    worse = [one for one in findings if one.verdict == "worse"]
    if worse:
        first = worse[0]
        more = f" ({len(worse)} of {len(findings)} quantities are worse)" if len(worse) > 1 else ""
        reason = first.judgement.reason
        return f"Worse: {first.quantity} of {name_of(first.identity, told_apart)}, {reason}{more}."
    if lost and require_all:
        return f"Incomplete: {lost} rows or quantities of the baseline were not measured again."
    better = sum(one.verdict == "better" for one in findings)
    judged = sum(one.verdict in {"better", "same"} for one in findings)
    return f"Nothing is worse: {judged} quantities compared, {better} better."
