"""The networks that the steps are tested with."""

import torch
import torchvision

CLASSES = 5
# A small one of each family of torchvision's networks.
OF_EACH_FAMILY = ("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet")
OF_EACH_FAMILY += ("inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf")
OF_EACH_FAMILY += ("regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1")
OF_EACH_FAMILY += ("swin_t", "swin_v2_t", "vgg11", "vit_b_32")


def linear():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, CLASSES)), 8


def convnet():
    return (
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3),
            torch.nn.BatchNorm2d(8),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
            torch.nn.Linear(8, CLASSES),
        ),
        8,
    )


def resnet18():
    return torchvision.models.resnet18(num_classes=CLASSES), 32


def mobilenet_v3_small():
    return torchvision.models.mobilenet_v3_small(num_classes=CLASSES), 32


def small_vit():
    """A smaller vit_b_16."""
    return (
        torchvision.models.VisionTransformer(
            image_size=32,
            patch_size=16,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
            num_classes=CLASSES,
            dropout=0.1,
            attention_dropout=0.1,
        ),
        32,
    )


ALL = {build.__name__: build for build in (linear, convnet, resnet18, mobilenet_v3_small, small_vit)}


def made(name, seed=0):
    """The network of a name and its image size, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ALL[name]()
