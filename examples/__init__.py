"""Short programs that train what a cut has left, each with real data."""
