"""The policy servers: which there are, how they are spoken to, and who gets a place at them."""
