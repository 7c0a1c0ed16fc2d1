"""Tokenizers, and documents as tokens."""
