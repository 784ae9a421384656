"""Trains the demo model in short legs, each of which goes on where the last one stopped."""
