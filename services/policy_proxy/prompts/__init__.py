"""Messages to token ids, each of them computed once."""
