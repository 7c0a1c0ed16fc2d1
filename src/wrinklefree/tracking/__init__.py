"""What was made from what: manifests, code digests, MLflow runs, and the frame of every stage."""
