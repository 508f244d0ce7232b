"""Nothing in a repository may run code that is not ours, or lead out of it.

Comes in: a model folder. Goes out: the first offender, as a sentence. A Python backend runs
whatever `model.py` it finds, so ours is compared byte for byte with the packaged one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cofi_deploy.triton_repository.code import CODE_FILE, is_ours
from cofi_deploy.triton_repository.schema import ModelConfig

_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}
_CODE = {".py", ".pyc", ".pyo", ".so", ".dll", ".sh"}

# Parameters of backends that name a file with code in it.
_CODE_PARAMETERS = ("EXECUTION_ENV_PATH", "CPU_EXTENSION_PATH")


def file_problems(repository: Path, folder: Path) -> Iterator[str]:
    """Links that leave, pickles, and code, in any depth below a model folder."""
    real = repository.resolve()
    for path in [folder, *sorted(folder.rglob("*"))]:
        if not path.resolve().is_relative_to(real):
            yield f"{str(path)!r} points outside of {str(repository)!r}; refused"
        elif path.suffix in _PICKLES or _is_stray_bin(path):
            yield f"{str(path)!r} may be a pickle, which can run code when opened; remove it"
        elif path.name == CODE_FILE and path.is_file():
            if not is_ours(path):
                yield (
                    f"{str(path)!r} is not the code that this cofi-deploy ships, and a server "
                    "would run it; export the model again"
                )
        elif path.suffix in _CODE:
            yield f"{str(path)!r} is code that cofi-deploy did not write; remove it"


def field_problems(config: ModelConfig) -> Iterator[str]:
    """Fields of a configuration that make a server load code from elsewhere."""
    if config.runtime:
        yield f"runtime is {config.runtime!r}, which is a library to load; remove it"
    if config.model_operations.op_library_filename:
        yield "model_operations names libraries to load; remove it"
    if config.model_repository_agents.agents:
        yield "model_repository_agents names libraries to load; remove it"
    for name in _CODE_PARAMETERS:
        if name in config.parameters:
            yield f"parameter {name!r} names code to load; remove it"


def _is_stray_bin(path: Path) -> bool:
    """The weights of an OpenVINO model lie beside its graph; any other .bin may be a pickle."""
    return path.suffix == ".bin" and not path.with_suffix(".xml").is_file()
