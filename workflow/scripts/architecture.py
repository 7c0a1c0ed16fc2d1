"""Another model than the run's, dense and ternary, on the same text."""

from wrinklefree.research.architecture import train_architecture
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main(
        "architecture",
        train_architecture,
        inputs=["mixture", "tokenizer", "teachers"],
        instance="architecture",
    )
