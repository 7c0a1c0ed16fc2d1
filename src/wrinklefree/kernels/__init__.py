"""One folder per operation: plain torch reference, Triton kernel, dispatch, and the maths."""
