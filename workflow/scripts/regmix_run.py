"""One small training on a mixture drawn around the present one."""

from wrinklefree.research.proxies import train_proxy
from wrinklefree.tracking.stage import stage_main

if __name__ == "__main__":
    stage_main("regmix_run", train_proxy, inputs=["mixture"], instance="run")
