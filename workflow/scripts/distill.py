"""Distillation of the dense model into one of the ternary students."""

from wrinklefree.tracking.stage import stage_main
from wrinklefree.train.distill import distill_student

if __name__ == "__main__":
    stage_main(
        "distill",
        distill_student,
        inputs=["model", "teacher", "teachers", "mixture"],
        instance="student",
    )
