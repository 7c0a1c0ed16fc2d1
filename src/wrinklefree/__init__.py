"""WrinkleFree: dense language models into 1.58-bit BitNet models, reproducibly.

Importing this package imports nothing heavy; torch and mlflow come with the modules that use them.
"""

__version__ = "0.1.0"
