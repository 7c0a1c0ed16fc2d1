"""Ternary linear layers (BitNet b1.58): weights, activations, the layer, its warmup."""
