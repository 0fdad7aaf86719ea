"""Trajectories afterwards: replays, results, corpora."""
