"""Grids of recipes: their plan, their trials on a Ray cluster, the leaderboard and the best of it as a bundle."""
