"""Runs a command that ends with its parent: `triton_child.py PARENT_PID COMMAND...`.

Started by `triton_server.py` as a script, before the server itself: where our process is killed and
can stop nothing any more, the kernel sends the server the signal of an orderly stop.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; kept when another program is executed


def main(parent: int, command: list[str]) -> None:
    """Become ``command``; ends at once where the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was asked
            return
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
