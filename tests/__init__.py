"""The tests; helpers of several are in build.py, prove.py and command.py, the rules table is in cases/."""
