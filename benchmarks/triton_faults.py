"""What faults do to a Triton server that is under load, and what its clients notice.

In: a `Patient`. Out: a row for each fault: good requests sent, answered, wrong and lost, what was
refused, and `held`: whether all was as it must be. `triton_serving.py` writes the rows;
`tests/triton/test_faults.py` runs smaller ones. Next: `triton_file_faults.py`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from triton_file_faults import corrupt_version, disk_full
from triton_malformed import crashing_requests, malformed_requests
from triton_patient import ANSWERED, NAME, Outcome, Patient, Row, counted, is_clean, send, serves
from triton_service import free_ports, running
from triton_watch import memory_mib, shared_memory_mib, stubs

from cofi_deploy.serve.triton_command import ServerSettings, shm_prefix

BAD_CLIENTS = 4
RETRY_S = 60.0  # a client gives up after that
WARM_UPS = 10  # of every kind, before anything is counted
PARTS = 5
MEMORY_LIMIT_MIB = 64.0  # growth from the third fifth of the malformed requests to the last
UNREACHED = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "ConnectionRefusedError", "TimeoutError"}


def run_faults(patient: Patient) -> list[Row]:
    """Every fault in turn."""
    faults: tuple[Callable[[Patient], Row], ...] = (
        malformed,
        crashing,
        server_killed,
        stub_killed,
        disk_full,
        corrupt_version,
    )
    rows = []
    for fault in faults:
        began = time.perf_counter()
        row = {"fault": fault.__name__, **fault(patient)}
        rows.append({**row, "wall_s": time.perf_counter() - began})
        print(f"{fault.__name__}: {json.dumps(rows[-1])}", flush=True)
    return rows


def malformed(patient: Patient) -> Row:
    """Malformed requests of every kind, in random order, mixed into good traffic.

    Memory is looked at after every fifth of them. Buffers grow to the largest requests that they
    have seen at the same time, so it counts from the third fifth on.
    """
    kinds, ports = malformed_requests(patient.target()), free_ports()
    prefix = shm_prefix(ServerSettings(**ports))
    order = [kinds[index % len(kinds)] for index in range(patient.requests)]
    random.Random(0).shuffle(order)
    repository, log = patient.repository("malformed"), patient.scratch / "malformed.log"
    outcome: Outcome = Counter()
    memory, shared = [], []
    with running(repository, log, ports) as server:
        send(server, kinds * WARM_UPS, BAD_CLIENTS)
        with patient.traffic(ports) as good:
            for part in range(PARTS):
                outcome += send(server, order[part::PARTS], BAD_CLIENTS)
                memory.append(memory_mib(server.pid))
                shared.append(shared_memory_mib(prefix))
        alive = serves(server)
    accepted = sorted(name for name, words in outcome if words == ANSWERED)
    refusals: Counter[str] = Counter()
    for (_, words), count in outcome.items():
        refusals[words] += count
    is_flat = memory[-1] - memory[PARTS // 2] < MEMORY_LIMIT_MIB
    return {
        **counted(good),
        "malformed": len(order),
        "kinds": len(kinds),
        "refusals": dict(refusals),
        "accepted": accepted,
        "memory_mib": memory,
        "shared_memory_mib": shared,
        "memory_limit_mib": MEMORY_LIMIT_MIB,
        "held": is_clean(good)
        and alive
        and not accepted
        and not UNREACHED & set(refusals)
        and is_flat,
    }


def crashing(patient: Patient) -> Row:
    """Requests that are known to end this server's process; it is started again each time."""
    ports, ended_by = free_ports(), []
    repository, log = patient.repository("crashing"), patient.scratch / "crashing.log"
    with ExitStack() as servers:
        server = servers.enter_context(running(repository, log, ports))
        with patient.traffic(ports, retry_s=RETRY_S) as good:
            for request in crashing_requests(patient.target()):
                send(server, [request], 1)
                time.sleep(patient.seconds / 8)
                if not serves(server):
                    ended_by.append(request.name)
                    servers.close()
                    server = servers.enter_context(running(repository, log, ports))
            time.sleep(patient.seconds / 8)
    return {**counted(good), "ended_by": ended_by, "held": is_clean(good)}


def server_killed(patient: Patient) -> Row:
    """SIGKILL for the server, which is then started again; clients ask until they are answered."""
    ports = free_ports()
    repository, log = patient.repository("killed"), patient.scratch / "killed.log"
    with ExitStack() as servers:
        server = servers.enter_context(running(repository, log, ports))
        with patient.traffic(ports, retry_s=RETRY_S) as good:
            time.sleep(patient.seconds / 2)
            os.kill(server.pid, signal.SIGKILL)
            began = time.perf_counter()
            servers.close()
            servers.enter_context(running(repository, log, ports))
            down_s = time.perf_counter() - began
            time.sleep(patient.seconds / 2)
    return {**counted(good), "down_s": down_s, "held": is_clean(good) and good.retried > 0}


def stub_killed(patient: Patient) -> Row:
    """SIGKILL for the process of the encoder's Python code; then a restart.

    Triton 2.51 neither starts it again nor says so in its health: every request fails until then.
    """
    ports = free_ports()
    repository, log = patient.repository("stub"), patient.scratch / "stub.log"
    with ExitStack() as servers:
        server = servers.enter_context(running(repository, log, ports))
        with patient.traffic(ports, retry_s=RETRY_S) as good:
            time.sleep(patient.seconds / 2)
            for stub in stubs(server.pid, NAME):
                stub.kill()
            began = time.perf_counter()
            time.sleep(patient.seconds / 2)
            before = good.answered
            time.sleep(1.0)
            recovered, says_ready = good.answered > before, serves(server)
            if not recovered:
                # Told to stop in order, it waits half a minute for the model that is dead.
                server.stop(timeout_s=1.0)
                servers.enter_context(running(repository, log, ports))
            down_s = time.perf_counter() - began
            time.sleep(patient.seconds / 2)
    return {
        **counted(good),
        "recovered_by_itself": recovered,
        "health_said_ready": says_ready,
        "down_s": down_s,
        "held": is_clean(good),
    }
