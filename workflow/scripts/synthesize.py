"""Text that a teacher writes where the student is behind it."""

from wrinklefree.research.synthesize import synthesize
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("synthesize", synthesize, inputs=["student"], collections=["documents"])
