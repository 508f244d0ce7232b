"""Every exception that cofi-deploy raises on purpose.

```
CofiDeployError                 exit 1
├── UsageError                  exit 2   a flag, a file of settings, a name: what the user typed
│   ├── ConfigError             settings that do not fit together, all problems at once
│   ├── DataError               a data file: path, row and column named
│   └── BudgetError             a sparsity, size or speedup that the masks cannot reach
├── EnvironmentProblem          exit 3   this machine lacks something
│   ├── MissingDependencyError  a package; names the extra that brings it
│   └── HubUnreachableError     a hub id without a network
├── ArtifactError               a file or directory on disk is not what it should be
│   ├── CheckpointError         model weights or training state
│   └── RepositoryError         a Triton model repository
├── DivergedError               NaN or exploding loss
├── PeerError                   another of the processes that train together failed
├── ExportError                 an artifact could not be made, or differs from its source
│   └── EngineBuildError        TensorRT refused the network
└── RunnerError                 a runtime could not open or run an artifact
```

A message is one sentence: what it got, what is allowed; what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CofiDeployError(Exception):
    """Root of the tree; the command line prints its message and exits with `exit_code`."""

    exit_code = 1


class UsageError(CofiDeployError):
    """What the user typed names nothing, or contradicts itself."""

    exit_code = 2


class ConfigError(UsageError):
    """Settings that do not fit together; the message lists every problem found."""


class DataError(UsageError):
    """A data file that cannot be trained on or scored; the message names file, row and column."""


class EnvironmentProblem(CofiDeployError):  # noqa: N818 - `EnvironmentError` is a builtin
    """This machine lacks something: a package, a device, a network, disk space."""

    exit_code = 3


class MissingDependencyError(EnvironmentProblem):
    """An optional package is absent; the message carries the install line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        """Name the package, the extra that brings it and what it is needed for."""
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"run: pip install 'cofi-deploy[{extra}]'"
        )
        self.package = package
        self.extra = extra


class HubUnreachableError(EnvironmentProblem):
    """A hub id was given, and neither cache nor network can supply it."""


class ArtifactError(CofiDeployError):
    """A file or directory on disk is missing, corrupt, newer than this code, or not ours."""


class CheckpointError(ArtifactError):
    """Model weights or training state that do not fit what they claim to be."""


class RepositoryError(ArtifactError):
    """A Triton model repository that a server would refuse or serve wrongly."""


class BudgetError(UsageError):
    """A sparsity, size or speedup that the masks cannot reach; names the reachable maximum."""


class DivergedError(CofiDeployError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class PeerError(CofiDeployError):
    """Another of the processes that train together failed; carries its message and exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        """What the other process would print, and the code that it exits with."""
        super().__init__(message)
        self.exit_code = exit_code


class ExportError(CofiDeployError):
    """An artifact could not be made, or does not answer like the model it came from."""


class EngineBuildError(ExportError):
    """TensorRT built no engine; carries the builder's first error."""


class RunnerError(CofiDeployError):
    """A runtime could not open or run an artifact."""


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Complete an error message: the allowed values and, where one is close, the nearest match.

    >>> did_you_mean("sst", ["sst2", "mrpc"])
    "allowed: sst2, mrpc; did you mean 'sst2'?"
    """
    choices = list(allowed)
    nearest = difflib.get_close_matches(got, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"allowed: {', '.join(choices)}{hint}"
