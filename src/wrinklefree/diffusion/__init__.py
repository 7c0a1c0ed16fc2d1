"""Block diffusion: masks, corruption, loss, likelihood and decoding."""
