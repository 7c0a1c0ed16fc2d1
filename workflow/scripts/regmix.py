"""A regression over the small trainings, and the mixture that it predicts to be best."""

from wrinklefree.research.regmix import propose_mixture
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("regmix", propose_mixture, collections=["runs"], members="regmix.runs")
