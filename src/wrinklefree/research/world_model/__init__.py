"""A model of a small world: it predicts the frames of videos, as tokens."""
