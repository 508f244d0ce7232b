"""The processes that train one model together; a single process is the ordinary case of one.

`torchrun` or `accelerate launch` starts them, `joined` lets them find each other. All of them
compute, each on its share of every batch; the first alone writes. The rule that keeps them from
waiting for ever: what may fail on one of them is done within `together` or by `on_main`, so that
an error, or a Ctrl-C, of one ends all of them at the same place, with the same words.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from cofi_deploy.errors import CofiDeployError, EnvironmentProblem, PeerError

T = TypeVar("T")

# The others wait while the first caches the teacher's answers or scores; the launcher ends all of
# them when one dies.
_TIMEOUT = datetime.timedelta(hours=24)


class _Ending:
    """Whether every process knows that, and why, the run ends."""

    is_known = False


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Find the other processes, if a launcher started more than one; leave together.

    Raises:
        EnvironmentProblem: There are more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield
        return
    if not distributed.is_initialized():
        _join()
    _Ending.is_known = False
    try:
        yield
        _Ending.is_known = True
    finally:
        # The launcher ends everybody as soon as one has gone, and the first may still be writing.
        if _Ending.is_known:
            _vote(0)


def world_size() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process; 0 is the first."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this is the first process, the one that writes."""
    return rank() == 0


class together(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a statement
    """A context that every process enters: what fails in it on one fails on all.

    Nothing in its body may wait for other processes.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the others.

        Raises:
            PeerError: Another process failed, with its message and exit code.
            KeyboardInterrupt: Another process was interrupted.
        """
        if world_size() > 1 and any(_vote(error is not None)):
            _tell(error)


def on_main(function: Callable[[], T]) -> T:
    """Call ``function`` in the first process; all get its result, or its error."""
    if world_size() == 1:
        return function()
    outcome: list[Any] = [None]
    with together():
        if is_main():
            outcome[0] = function()
    with _reaching_others():
        distributed.broadcast_object_list(outcome, src=0)
    result: T = outcome[0]
    return result


def any_of(*flags: bool) -> tuple[bool, ...]:
    """For each flag, whether it is set in any process."""
    return flags if world_size() == 1 else _vote(*flags)


def known_to_all(error: BaseException) -> BaseException:
    """``error``, which every process is about to raise at this very place."""
    _Ending.is_known = True
    return error


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, in one exchange."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _reaching_others():
        distributed.all_reduce(flat)
    parts = torch.split(flat, [each.numel() for each in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def copy_from_main(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by that of the first process."""
    if world_size() == 1:
        return
    with _reaching_others():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def own_random_stream(*place: object) -> None:
    """Let the processes draw different dropout at ``place``, such as a seed, a stage and a step.

    The first goes on with its stream, which checkpoints keep; those of the others follow from
    the place. So a checkpoint knows nothing of the number of processes, and the same number of
    them draws the same again.
    """
    if not is_main():
        digest = hashlib.sha256(repr((*place, rank())).encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "big"))


def _join() -> None:
    from accelerate import PartialState  # noqa: PLC0415 - one process does without it

    options: dict[str, Any] = {"timeout": _TIMEOUT}
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        here, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if here >= gpus:
            raise EnvironmentProblem(
                f"{os.environ.get('LOCAL_WORLD_SIZE', here + 1)} processes were started here, "
                f"but there are {gpus} GPUs; set --nproc-per-node to {gpus} or less"
            )
        options["backend"] = "cpu:gloo,cuda:nccl"  # votes never wait for the GPU
    PartialState(cpu=not on_gpu, **options)


def _vote(*flags: int) -> tuple[bool, ...]:
    votes = torch.tensor(flags, dtype=torch.int32)
    with _reaching_others():
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return tuple(bool(vote) for vote in votes.tolist())


def _tell(error: BaseException | None) -> None:
    """Exchange what went wrong; a process in which nothing did raises the others' error."""
    interrupted = isinstance(error, KeyboardInterrupt)
    code = error.exit_code if isinstance(error, CofiDeployError) else 1
    own = None if error is None else (interrupted, str(error) or type(error).__name__, code)
    all_of_them: list[Any] = [None] * world_size()
    with _reaching_others():
        distributed.all_gather_object(all_of_them, own)
    _Ending.is_known = True
    if error is not None:
        return
    interrupted, text, code = next(each for each in all_of_them if each is not None)
    if interrupted:
        raise KeyboardInterrupt
    raise PeerError(text, code)


@contextlib.contextmanager
def _reaching_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's own, and torch's DistBackendError
        raise PeerError(
            "another process of this run ended without a word (killed, or out of memory?); "
            "see what it printed, then continue with --resume",
            1,
        ) from error
