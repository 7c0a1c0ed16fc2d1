"""The comparison of every model of the run."""

from wrinklefree.evaluate.stage import KINDS, compare_models
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("evaluate", compare_models, inputs=[*KINDS, "mixture", "tasks"], last=True)
