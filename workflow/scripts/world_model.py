"""A dense and a ternary model that predict frames of videos."""

from wrinklefree.research.world_model.stage import train_world_models
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("world_model", train_world_models)
