"""Compact checkpoint -> artifact of one runtime; see `onnx.py`, from which all others start."""
