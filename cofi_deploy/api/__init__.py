"""The Python API: `train`, `export`, `verify`, `bench`; the command line calls nothing else.

The stages meet here and only here, and hand over nothing but paths.
"""

from __future__ import annotations

from cofi_deploy.api.exporting import export
from cofi_deploy.api.training import train
from cofi_deploy.api.verifying import bench, verify

__all__ = ["bench", "export", "train", "verify"]
