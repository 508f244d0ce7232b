"""Load for a Triton server: closed and open loop over gRPC, every answer checked.

In: the address of a server and `Case`s, requests with their right answers. Out: a `Load`, what was
sent, answered, wrong and failed, with the latency of every answer. Next: `triton_serving.py`.

In a closed loop each of n clients sends its next request when its last one is answered. In an open
loop requests come as a Poisson process, whatever the server does, and the latency of each counts
from the moment when it was *meant* to be sent: a generator or server that falls behind cannot hide
it (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

Arrays = Mapping[str, npt.NDArray[Any]]

# fp32 sums in another order (batch, padding) move a logit by about 1e-5; another text's answer is
# further away than this, or the texts would not both be among the cases (`triton_cases.py`).
TOLERANCE = 1e-4
# A request without an answer for so long counts as failed.
TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """A request and its right answer, computed beforehand without a server.

    Attributes:
        inputs: Arrays by name, batch axis first; objects of type bytes for strings.
        answer: What every output must be.
    """

    inputs: Arrays
    answer: Arrays

    def infer_inputs(self) -> list[InferInput]:
        """The inputs as tritonclient takes them."""
        made = []
        for name, array in self.inputs.items():
            item = InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            made.append(item.set_data_from_numpy(array))
        return made

    def is_right(self, outputs: Arrays) -> bool:
        """True when each output has the shape, the strings and, nearly, the numbers expected."""
        return all(_is_close(outputs.get(name), array) for name, array in self.answer.items())


@dataclass(kw_only=True)
class Load:
    """What came of a load.

    ``sent`` is ``answered`` plus the sum of ``errors``; ``wrong`` are among the answered.
    """

    seconds: float = 0.0
    client_cpu_s: float = 0.0
    sent: int = 0
    wrong: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)
    # By how much each request left later than it was meant to; open loop only.
    late_ms: list[float] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def answered(self) -> int:
        """Requests that got an answer, right or wrong."""
        return len(self.latencies_ms)

    def percentile_ms(self, percent: float) -> float:
        """Latency that so many per cent of the answers kept; infinite when there is none."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else np.inf

    def add(self, other: Load) -> None:
        """Pool with a repeat of the same load."""
        self.seconds += other.seconds
        self.client_cpu_s += other.client_cpu_s
        self.sent += other.sent
        self.wrong += other.wrong
        self.errors += other.errors
        self.latencies_ms += other.latencies_ms
        self.late_ms += other.late_ms
        self.stopped_early |= other.stopped_early


def closed_loop(
    url: str, model: str, cases: Sequence[Case], *, clients: int, seconds: float, warm_up_s: float
) -> Load:
    """Load with a fixed number of requests in flight.

    Args:
        url: host:port of gRPC.
        model: Name on the server.
        cases: Sent in turn.
        clients: Requests in flight.
        seconds: Measured time.
        warm_up_s: Of the same load before; its answers are not counted.
    """
    sender = _Sender(url, model, cases)
    return asyncio.run(sender.closed(clients, seconds, warm_up_s))


def open_loop(  # noqa: PLR0913 - a load and its limits
    url: str,
    model: str,
    cases: Sequence[Case],
    *,
    rate: float,
    seconds: float,
    warm_up_s: float,
    seed: int,
    limit_ms: float | None = None,
) -> Load:
    """Load with Poisson arrivals.

    Args:
        url: host:port of gRPC.
        model: Name on the server.
        cases: Sent in turn.
        rate: Mean requests per second.
        seconds: Measured time.
        warm_up_s: Of the same load before; its answers are not counted.
        seed: Of the arrival times.
        limit_ms: Stop as soon as more than 1 % of all requests planned took longer: their p99
            cannot come below it any more.
    """
    rng = np.random.default_rng(seed)
    planned = max(1, int(rate * (warm_up_s + seconds)))
    due = np.cumsum(rng.exponential(1 / rate, planned))
    sender = _Sender(url, model, cases)
    return asyncio.run(sender.open(due, warm_up_s, limit_ms))


class _Sender:
    """One run of a load: keeps raw answers, which are checked after the clock has stopped."""

    def __init__(self, url: str, model: str, cases: Sequence[Case]) -> None:
        self._url, self._model, self._cases = url, model, cases
        self._requests = [case.infer_inputs() for case in cases]
        self._turn = itertools.cycle(range(len(cases)))
        self._answers: list[tuple[int, Any]] = []
        self._load = Load()

    async def closed(self, clients: int, seconds: float, warm_up_s: float) -> Load:
        async with InferenceServerClient(self._url) as server:
            start = time.perf_counter()
            counted_from, end = start + warm_up_s, start + warm_up_s + seconds

            async def client() -> None:
                while (now := time.perf_counter()) < end:
                    await self._ask(server, now, counted=now >= counted_from)

            tasks = [asyncio.create_task(client()) for _ in range(clients)]
            await asyncio.sleep(warm_up_s)
            began, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*tasks)
            return self._finish(began, cpu)

    async def open(
        self, due: npt.NDArray[np.float64], warm_up_s: float, limit_ms: float | None
    ) -> Load:
        async with InferenceServerClient(self._url) as server:
            allowed = 0.01 * np.sum(due >= warm_up_s)
            start = time.perf_counter()
            began, cpu = start + warm_up_s, 0.0
            tasks: list[asyncio.Task[None]] = []
            for offset in due.tolist():
                # Also when late: a sleep of 0 lets the answers in.
                await asyncio.sleep(max(0.0, start + offset - time.perf_counter()))
                if limit_ms is not None and self._slow(limit_ms) > allowed:
                    self._load.stopped_early = True
                    break
                counted = offset >= warm_up_s
                cpu = cpu or (time.process_time() if counted else 0.0)
                if counted:
                    self._load.late_ms.append((time.perf_counter() - start - offset) * 1e3)
                asking = self._ask(server, start + offset, counted=counted)
                tasks.append(asyncio.create_task(asking))
            await asyncio.gather(*tasks)
            return self._finish(began, cpu)

    def _slow(self, limit_ms: float) -> int:
        """Counted answers above the limit; looks at the newest ones only, so that it is cheap."""
        new = self._load.latencies_ms[self._seen :]
        self._seen += len(new)
        self._over += sum(latency > limit_ms for latency in new)
        return self._over

    _seen = 0
    _over = 0

    async def _ask(self, server: InferenceServerClient, since: float, *, counted: bool) -> None:
        index = next(self._turn)
        answer: Any
        try:
            answer = await server.infer(
                self._model, self._requests[index], client_timeout=TIMEOUT_S
            )
        except InferenceServerException as error:
            answer = error
        took_ms = (time.perf_counter() - since) * 1e3
        if not counted:
            return
        self._load.sent += 1
        if isinstance(answer, InferenceServerException):
            self._load.errors[f"{answer.status()}: {answer.message()}"[:120]] += 1
        else:
            self._load.latencies_ms.append(took_ms)
            self._answers.append((index, answer))

    def _finish(self, began: float, cpu: float) -> Load:
        self._load.seconds = time.perf_counter() - began
        self._load.client_cpu_s = time.process_time() - cpu
        for index, answer in self._answers:
            case = self._cases[index]
            outputs = {name: answer.as_numpy(name) for name in case.answer}
            self._load.wrong += not case.is_right(outputs)
        return self._load


@dataclass(kw_only=True)
class Bisection:
    """Search for the highest rate that passes, one probe at a time, so that two can take turns.

    Goes up or down by ``step`` until one rate has passed and one has failed, then halves the gap
    (geometrically) until they are within ``precision`` of each other.
    """

    rate: float
    step: float
    precision: float
    passed: float | None = None
    failed: float | None = None

    @property
    def done(self) -> bool:
        """True when the highest passing rate is known closely enough."""
        if self.passed is None or self.failed is None:
            return False
        return self.failed <= self.passed * self.precision

    def tell(self, *, passed: bool) -> None:
        """The verdict on ``rate``; sets the next one."""
        if passed:
            self.passed = self.rate
        else:
            self.failed = self.rate
        if self.failed is None:
            self.rate *= self.step
        elif self.passed is None:
            self.rate /= self.step
        else:
            self.rate = (self.passed * self.failed) ** 0.5


def _is_close(found: npt.NDArray[Any] | None, expected: npt.NDArray[Any]) -> bool:
    if found is None or found.shape != expected.shape:
        return False
    if expected.dtype == np.object_:
        return bool(np.array_equal(found, expected))
    return bool(np.allclose(found, expected, rtol=0, atol=TOLERANCE))
