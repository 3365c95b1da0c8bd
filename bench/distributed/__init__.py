"""Several processes that make one run: what they exchange, and batch norm over all of them."""
