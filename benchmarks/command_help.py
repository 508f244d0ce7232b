"""Help of the scripts here: their first docstring, line by line as it is written."""

from __future__ import annotations


def as_written(text: str) -> str:
    """``text`` with the mark in front of each paragraph that keeps click from wrapping it anew."""
    return "\n\n".join(f"\b\n{paragraph}" for paragraph in text.strip().split("\n\n"))
