"""What ternary weights cost against a dense model that trained as long."""

from wrinklefree.research.control import train_control
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    inputs = ["model", "subln", "stage2", "distill_ar", "mixture"]
    stage_main("control", train_control, inputs=inputs)
