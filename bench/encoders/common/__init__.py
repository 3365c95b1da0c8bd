"""What encoders share: their base, the feature layer on top, folding for inference, those of torchvision and timm."""
