"""WrinkleFree: dense language models into 1.58-bit BitNet models, reproducibly.

Importing this package imports nothing heavy; torch and mlflow come with the modules that use them.
"""

import os

__version__ = "0.1.0"

# OpenMP's threads that wait by spinning take the cores from whoever else works on this machine, and
# from each other; those that sleep at once cost an idle machine 8 %, a short spin nothing
# (benchmarks/threads.py). OpenMP reads this once, when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# MKL may else use fewer threads than it was given, as it sees fit, and sums depend on their number.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")
