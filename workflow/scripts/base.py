"""The dense model: trained from scratch here, or brought from elsewhere."""

from wrinklefree.tracking.stage import stage_main
from wrinklefree.train.base import make_base

if __name__ == "__main__":
    stage_main("base", make_base, inputs=["mixture", "tokenizer"])
