"""Short anneals of the dense model on one of two mixtures."""

from wrinklefree.research.anneals import anneal_arm
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("microanneal_run", anneal_arm, inputs=["model", "mixture"], instance="arm")
