"""Keeping training stable, and noticing when it is not."""
