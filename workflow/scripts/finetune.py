"""What is left of a model's worth for a task."""

from wrinklefree.research.finetune import finetune_models
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("finetune", finetune_models, inputs=["model", "subln", "stage2"])
