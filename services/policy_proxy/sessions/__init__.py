"""What belongs to one episode: its calls, keys, rewards, and what is handed out of it."""
