"""CIFAR-100: 50,000 train and 10,000 test photos of 100 classes, 3x32x32, downloaded on first use (as CIFAR-10)."""

from bench.datasets import cifar10


class Dataset(cifar10.Dataset):
    torchvision_class = "CIFAR100"
