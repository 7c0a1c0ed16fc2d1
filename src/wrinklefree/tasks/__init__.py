"""Published benchmarks as multiple choice, for lm-eval."""
