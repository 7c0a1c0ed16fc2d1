"""The schema of ``params.yaml``. Imports no torch."""
