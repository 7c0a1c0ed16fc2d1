"""What a training stage minimises, one objective per file."""
