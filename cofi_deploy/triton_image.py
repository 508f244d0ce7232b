"""NVIDIA's image of the Triton server: what `serve` builds on, and what a cluster pulls."""

from __future__ import annotations

TRITON_RELEASE = "25.10"
TRITON_IMAGE = f"nvcr.io/nvidia/tritonserver:{TRITON_RELEASE}-py3"
