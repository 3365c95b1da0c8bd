"""The harness: trains, attacks, stores and reports under one clock."""

__version__ = "0.1.0"
