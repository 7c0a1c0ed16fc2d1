"""Documents, tokens, rows and the order in which training reads them."""
