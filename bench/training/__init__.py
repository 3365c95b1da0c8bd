"""The training loop: a method and its adversary under one clock."""
