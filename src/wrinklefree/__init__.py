"""WrinkleFree: dense language models into 1.58-bit BitNet models, reproducibly.

Importing this package imports nothing heavy; torch and mlflow come with the modules that use them.
"""

import os

__version__ = "0.1.0"

# OpenMP's threads that wait by spinning take the cores from whoever else works on this machine, and
# from each other. It reads this once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
