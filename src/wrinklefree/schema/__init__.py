"""The base of all settings, and how they are read. Knows no room of them."""
