"""What the device does: placement, precision, meters of passes, memory, energy and pace."""
