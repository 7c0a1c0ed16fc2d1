"""Conversion of the ternary model to block diffusion."""

from wrinklefree.tracking.stage import stage_main
from wrinklefree.train.dlm import convert_to_diffusion

if __name__ == "__main__":
    stage_main("dlm", convert_to_diffusion, inputs=["model", "mixture"])
