"""SubLN and ternary layers in the dense model, and what they do to its loss."""

from wrinklefree.models.subln_stage import make_ternary
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("subln", make_ternary, inputs=["model", "mixture"])
