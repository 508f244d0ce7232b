"""Artifact -> answers, and the proof.

`runner.py` opens an artifact in a runtime, `accuracy.py` scores it, `latency.py` times it,
`verify.py` compares dense and pruned with both, `report.py` shows the result.
"""
