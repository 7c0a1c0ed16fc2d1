"""The one training loop, its objectives and its state on disk."""
