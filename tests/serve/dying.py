"""A process that measures for `own_process.ask`, or dies as native code does."""

from __future__ import annotations

import os
import signal

from cofi_deploy.serve import own_process


def main() -> None:
    """Answer with the request, or end by the signal that it names."""
    request = own_process.request()
    if "signal" in request:
        os.kill(os.getpid(), signal.Signals[request["signal"]])
    own_process.answer(request)


if __name__ == "__main__":
    main()
