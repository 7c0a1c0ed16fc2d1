"""Trainings of stage 2 with other settings, and the best of them as a preset."""

from wrinklefree.research.hyperparameters import search_hyperparameters
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("search", search_hyperparameters, inputs=["model", "teacher", "teachers", "mixture"])
