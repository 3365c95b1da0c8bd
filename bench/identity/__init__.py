"""Which code makes a number, and what to do when it is other code."""
