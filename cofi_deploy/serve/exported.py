"""Find the one file of an export directory that a runtime opens, checked against its checksum."""

from __future__ import annotations

from pathlib import Path

from cofi_deploy.errors import RunnerError
from cofi_deploy.exports import ExportFormat, ExportManifest, check_export


def open_export(
    directory: Path, runtime: str, wanted: ExportFormat, suffix: str
) -> tuple[ExportManifest, Path]:
    """The manifest of an export directory, and its file with ``suffix``.

    Raises:
        ArtifactError: No manifest, or a file that is missing or was changed.
        RunnerError: The directory holds another format, or not exactly one such file.
    """
    manifest = check_export(directory)
    if manifest.format != wanted:
        raise RunnerError(
            f"{runtime} opens exports of format {wanted!r}, but {str(directory)!r} is of format "
            f"{manifest.format!r}; run: cofi-deploy export {manifest.source_path} --format {wanted}"
        )
    found = [name for name in manifest.files if name.endswith(suffix)]
    if len(found) != 1:
        raise RunnerError(
            f"{str(directory)!r} lists {len(found)} files *{suffix}, expected one; "
            f"run: cofi-deploy export {manifest.source_path} --format {wanted}"
        )
    return manifest, directory / found[0]


def check_precision(runtime: str, got: str | None, allowed: tuple[str, ...]) -> None:
    """Refuse a precision that the opened artifact does not compute in; None passes.

    Raises:
        RunnerError: Names the runtime, the precision and those allowed.
    """
    if got is not None and got not in allowed:
        raise RunnerError(
            f"{runtime}: precision is {got!r}, this artifact allows: {', '.join(allowed)}; "
            "export it again with --precision"
        )
