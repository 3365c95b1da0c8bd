"""A search over the settings of methods, the same for all: `bench tune`."""
