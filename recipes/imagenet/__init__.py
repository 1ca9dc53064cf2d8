"""ImageNet-1K from a torchvision ImageFolder tree, with the augmentation of DeiT."""
