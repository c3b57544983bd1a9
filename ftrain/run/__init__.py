"""Training runs: what they are asked for, how they are built, and what is done with them."""
