"""Experiments of many small trainings: which mixture is best, and is it really better."""
