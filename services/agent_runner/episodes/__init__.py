"""Playing episodes, thousands at once."""
