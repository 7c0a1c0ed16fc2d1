"""Text that is computed rather than collected."""
