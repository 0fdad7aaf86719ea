"""The HTTP form of the runner."""
