"""What the experiments say, beside what was claimed."""

from wrinklefree.research.experiments import gather_experiments
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("experiments", gather_experiments, collections=["runs"], members="experiments.names")
