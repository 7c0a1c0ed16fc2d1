"""The two splits that documents and tokens are in."""

SPLITS = ("train", "held_out")
