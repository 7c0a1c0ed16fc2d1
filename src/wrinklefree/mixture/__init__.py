"""Rows of tokens, their order, and the batches that training reads."""
