"""Torch code that the policy server and the trainer share, so that both compute the same numbers. Needs torch; import it by module."""
