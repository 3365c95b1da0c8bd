"""Where runs can be watched: a file is a tracker, and its name is its name in ``--track``."""
