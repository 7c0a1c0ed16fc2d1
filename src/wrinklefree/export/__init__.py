"""Models as files that other tools load."""
