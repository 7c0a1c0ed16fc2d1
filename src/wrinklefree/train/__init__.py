"""The one training loop, its objectives, its state on disk and its progress display."""
