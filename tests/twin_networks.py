"""Two networks that compute the same: one overwrites what it is given wherever it can, the other overwrites nothing."""

import torch
from torch import nn
from torch.nn import functional as F

SHAPE = (3, 8, 8)


class Layers(nn.Module):
    """The layers of both; `forward` is theirs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.body = nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.last = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)
        self.act = nn.ReLU(inplace=True)


class InPlace(Layers):
    def forward(self, x):
        x.mul_(2)  # the input itself
        x -= x.mean((2, 3), keepdim=True)
        x[:, :1] += 1  # by way of a view
        x = self.act(x)
        y = self.act(self.norm(self.stem(x)))  # what BatchNorm has returned
        z = self.body(y)
        z += y
        z = self.act(z)  # what the last but one layer has returned
        z = self.last(z).mul_(0.5)
        return self.head(z.mean((2, 3)))


class OutOfPlace(Layers):
    def forward(self, x):
        x = 2 * x
        x = x - x.mean((2, 3), keepdim=True)
        x = F.relu(torch.cat([x[:, :1] + 1, x[:, 1:]], 1))
        y = F.relu(self.norm(self.stem(x)))
        z = F.relu(self.body(y) + y)
        return self.head((self.last(z) * 0.5).mean((2, 3)))


class InPlaceBetweenLayers(Layers):
    """Overwrites the inputs of layers after these were computed, which leaves nothing to differentiate by weights."""

    def forward(self, x):
        y = self.stem(x)
        x.zero_()
        z = self.body(y)
        y.relu_()  # the input of `body`
        w = self.last(z)
        z.add_(y)
        return self.head(w.add_(z).mean((2, 3)))


class OutOfPlaceBetweenLayers(Layers):
    def forward(self, x):
        y = self.stem(x)
        z = self.body(y)
        return self.head((self.last(z) + (z + F.relu(y))).mean((2, 3)))


def twins(first=InPlace, second=OutOfPlace):
    """Return both networks with the same weights, in eval mode."""
    torch.manual_seed(0)
    one, other = first(), second()
    one.norm.running_mean.normal_()
    one.norm.running_var.uniform_(0.5, 2)
    other.load_state_dict(one.state_dict())
    return one.eval(), other.eval()


def images(count=24, seed=1):
    """Return images laid out so that nothing that prepares them has to copy them."""
    x = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))
    return x.to(memory_format=torch.channels_last)
