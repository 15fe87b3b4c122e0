"""Makes routes with the same networks and losses in PyTorch.

The losses are those of torchdistill; the training loop is plain PyTorch.
torchdistill's own loop and hooks can be imported only if torchvision is
installed. The hooks here work like torchdistill's on one device.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torchdistill.losses import mid_level

from benchmarks.speed.contest import Run, looped

_HINT = "stage2"
_PATHS = {"soft logits": "logits", "FitNet": _HINT, "RKD": "average"}


def make(
    route: str,
    loss: str,
    teacher: str,
    student: str,
    shape: Sequence[int],
    weights: Sequence[int],
    batch_size: int,
) -> dict[str, Run]:
    """Makes one route.

    Args:
        route: Its name.
        loss: A key of `_PATHS`, or empty for the student alone.
        teacher: Name of the teacher.
        student: Name of the student.
        shape: Height, width and channels of an image.
        weights: Numbers of weights of Keras's student and teacher.
        batch_size: Images in a batch.

    Returns:
        The route's `Run` by its name.

    Raises:
        ValueError: If the networks have other numbers of weights than Keras's.
    """
    torch.manual_seed(0)
    networks = [_network(name, shape) for name in (student, teacher)]
    found = [_count(each) for each in networks]
    if found != list(weights):
        raise ValueError(
            "The networks must have as many weights as Keras's. Received: "
            f"{found}, where Keras has {list(weights)}. Mend _network."
        )
    images = torch.randn(batch_size, shape[2], *shape[:2])
    labels = torch.arange(batch_size) % 100
    step = _step(*networks, loss)
    return {route: looped(lambda: step(images, labels))}


def _step(student, teacher, loss):
    optimizer = torch.optim.SGD(
        student.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True
    )
    task = nn.CrossEntropyLoss()
    student.train()
    teacher.eval().requires_grad_(False)
    if loss:
        read = [_hook(each, _PATHS[loss]) for each in (student, teacher)]
        transfer = _loss(loss)

    def step(images, labels):
        outputs = student(images)
        total = 0.0
        if loss:
            with torch.no_grad():
                teacher(images)
            total = transfer(*read, labels)
        if loss != "soft logits":  # which includes the task's loss
            total = total + task(outputs, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def _hook(network, path):
    """Keeps a module's last output, in the form that the losses read."""
    kept = {path: {}}

    def keep(module, inputs, output):
        kept[path]["output"] = output

    network.get_submodule(path).register_forward_hook(keep)
    return kept


def _loss(name):
    path = _PATHS[name]
    if name == "soft logits":
        return mid_level.KDLoss(
            path, "output", path, "output", temperature=4.0, alpha=0.1
        )
    if name == "RKD":
        return mid_level.RKDLoss(path, path, 25.0, 50.0, "mean")
    side = {"module_path": path, "io": "output"}
    return mid_level.SimpleLossWrapper(
        nn.MSELoss(),
        input=side | {"is_from_teacher": False},
        target=side | {"is_from_teacher": True},
    )


def _network(name, shape):
    channels, side = shape[2], shape[0]
    if name == "vgg_small":
        return _VGG(channels, side)
    if name == "resnet_small":
        return _ResNet(channels)
    _, depth, width = name.split("_")
    return _WideResNet(channels, int(depth), int(width))


def _count(network):
    return sum(
        each.numel()
        for name, each in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    )


def _conv(before, filters, size=3, stride=1):
    return nn.Conv2d(before, filters, size, stride, size // 2, bias=False)


class _VGG(nn.Sequential):
    def __init__(self, channels, side):
        super().__init__()
        for stage, filters in enumerate((16, 32, 64), start=1):
            layers = []
            for _ in range(3):
                layers += [_conv(channels, filters), nn.BatchNorm2d(filters)]
                layers.append(nn.ReLU())
                channels = filters
            self.add_module(f"stage{stage}", nn.Sequential(*layers))
            self.add_module(f"stage{stage}_pool", nn.MaxPool2d(2))
            side //= 2
        self.add_module("average", nn.Flatten())  # the classifier's input
        self.add_module("logits", nn.Linear(side * side * channels, 100))


class _ResNet(nn.Sequential):
    def __init__(self, channels):
        super().__init__()
        self.add_module("stem", _conv(channels, 16))
        self.add_module("stem_norm", nn.BatchNorm2d(16))
        self.add_module("stem_relu", nn.ReLU())
        before = 16
        for stage, filters in enumerate((16, 32, 64), start=1):
            self.add_module(f"stage{stage}", _Block(before, filters, stage))
            before = filters
        _add_head(self, before)


class _Block(nn.Module):
    def __init__(self, before, filters, stage):
        super().__init__()
        stride = 1 if stage == 1 else 2
        self.body = nn.Sequential(
            _conv(before, filters, stride=stride),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            _conv(filters, filters),
            nn.BatchNorm2d(filters),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or before != filters:
            self.shortcut = nn.Sequential(
                _conv(before, filters, 1, stride), nn.BatchNorm2d(filters)
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class _WideResNet(nn.Sequential):
    def __init__(self, channels, depth, width):
        super().__init__()
        before = 16
        self.add_module("stem", _conv(channels, before))
        for stage in (1, 2, 3):
            filters = 16 * width * 2 ** (stage - 1)
            for block in range((depth - 4) // 6):
                # A stage's first activation is the output of the stage before.
                ends = f"stage{stage - 1}" if stage > 1 and not block else None
                self.add_module(
                    ends or f"stage{stage}_relu{block}",
                    nn.Sequential(nn.BatchNorm2d(before), nn.ReLU()),
                )
                stride = 2 if stage > 1 and not block else 1
                self.add_module(
                    f"stage{stage}_block{block}",
                    _WideBlock(before, filters, stride),
                )
                before = filters
        self.add_module(
            "stage3", nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
        )
        _add_head(self, before)

    def forward(self, x):
        activated = x
        for module in self:
            if isinstance(module, _WideBlock):
                x = module(x, activated)
            elif isinstance(module, nn.Sequential):
                activated = module(x)
            elif isinstance(module, nn.Conv2d):
                x = module(x)
            else:
                activated = module(activated)
        return activated


class _WideBlock(nn.Module):
    def __init__(self, before, filters, stride):
        super().__init__()
        self.shortcut = None
        if before != filters:
            self.shortcut = _conv(before, filters, 1, stride)
        self.body = nn.Sequential(
            _conv(before, filters, stride=stride),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            _conv(filters, filters),
        )

    def forward(self, x, activated):
        shortcut = self.shortcut(activated) if self.shortcut else x
        return self.body(activated) + shortcut


class _Average(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def _add_head(network, channels):
    network.add_module("average", _Average())
    network.add_module("logits", nn.Linear(channels, 100))
