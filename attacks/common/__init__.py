"""What attacks share: projection, random start, steepest step, the loop."""
