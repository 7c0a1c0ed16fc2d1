"""Documents of every source, and what is removed from them."""
