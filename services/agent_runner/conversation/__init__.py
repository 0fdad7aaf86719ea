"""The turn protocol and who takes part in it."""
