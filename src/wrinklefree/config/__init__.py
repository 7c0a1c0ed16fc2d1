"""``params.yaml`` as a whole: checked, with presets laid over it, documented. No torch."""
