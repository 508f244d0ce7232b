"""Stage `train`: dense checkpoint + data -> run directory with a compact model.

Reading order: gates.py, sparsity.py, lagrangian.py, distill.py, projection.py, cut.py, then
loop.py, stages.py and pipeline.py, which put them to work.
"""
