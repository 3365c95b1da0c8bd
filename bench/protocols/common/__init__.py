"""What protocols share: the base class, classifiers on frozen features, the linear probe."""
