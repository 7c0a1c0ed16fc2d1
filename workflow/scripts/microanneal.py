"""The verdict on two mixtures."""

from wrinklefree.research.microanneal import compare_arms
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("microanneal", compare_arms, inputs=["present", "candidate"])
