"""The disk: files that survive a crash, checkpoints, the folder of a run, locks, signals."""
