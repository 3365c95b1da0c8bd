"""What others hear of a run: hooks and the trackers that they feed."""
