"""What methods share: the base class, the adversaries, the augmentation, the losses."""
