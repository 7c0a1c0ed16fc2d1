"""All trainings of one experiment."""

from wrinklefree.research.experiment import run_experiment
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("experiment", run_experiment, inputs=["mixture"], instance="experiment")
