"""Triton model repositories: reading their configurations, and would a server serve them as meant?

`schema.py` reads `config.pbtxt`, `check.py` walks a repository, `code.py` names the Python files
that a server may run, `servers.py` knows server versions. Written by `export/triton.py`, opened by
`serve`.
"""

from cofi_deploy.triton_repository.check import check_repository
from cofi_deploy.triton_repository.code import CODE_FILE, is_ours, served_code
from cofi_deploy.triton_repository.schema import (
    BACKENDS,
    CONFIG_FILE,
    CONFIGS_FOLDER,
    ModelConfig,
    import_model_config,
    read_config,
    version_folders,
)
from cofi_deploy.triton_repository.servers import server_version

__all__ = [
    "BACKENDS",
    "CODE_FILE",
    "CONFIGS_FOLDER",
    "CONFIG_FILE",
    "ModelConfig",
    "check_repository",
    "import_model_config",
    "is_ours",
    "read_config",
    "served_code",
    "server_version",
    "version_folders",
]
