"""The regression gate: stored weights and fresh runs against a baseline."""
