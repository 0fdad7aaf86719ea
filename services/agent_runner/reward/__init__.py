"""What an episode earns, and why."""
