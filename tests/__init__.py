"""The tests; helpers that several of them use are in build.py and prove.py, the rules table is in cases/."""
