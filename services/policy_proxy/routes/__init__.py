"""The HTTP form of the proxy."""
