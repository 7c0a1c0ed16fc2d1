"""Continued pretraining with quantization in the loop."""

from wrinklefree.tracking.stage import stage_main
from wrinklefree.train.stage2 import continue_pretraining

if __name__ == "__main__":
    stage_main("stage2", continue_pretraining, inputs=["model", "teacher", "teachers", "mixture"])
