"""The picture of ``docs/symmetries.md``: a small residual network, its groups and blocks, and two of its rescalings.

Run it from the repository's root: ``python docs/figures/symmetries.py``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn

from wsflow.weightspace import NeuronGroup, WeightSpace

BEFORE, AFTER, GREY = "#2b6cb0", "#c05621", "#4a5568"
PLACES = {"input": (0.0, 0.0), "hidden1": (3.4, 0.0), "hidden2": (6.0, 2.5), "output": (9.4, 0.0)}


class Small(nn.Module):
    """One residual block with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, 2) of images (N, 3, H, W)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(x))))))
        return self.head(x.mean((2, 3)))


def draw_group(axes: Axes, group: NeuronGroup) -> None:
    """A box with a dot for each neuron, and its name."""
    x, y = PLACES[group.name]
    width = 0.26 * group.size + 0.2
    box = FancyBboxPatch((x - width / 2, y - 0.2), width, 0.4, boxstyle="round,pad=0.06", fc="#edf2f7", ec=GREY)
    axes.add_patch(box)
    places = [x + 0.26 * (i - (group.size - 1) / 2) for i in range(group.size)]
    axes.scatter(places, [y] * group.size, s=48, color=GREY, zorder=3)
    above = group.name == "hidden2"
    axes.text(x, y + (0.36 if above else -0.4), group.name, ha="center", va="bottom" if above else "top", weight="bold")


def draw_block(axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float, colour: str) -> None:
    """An arrow from one group to another."""
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, connectionstyle=style, arrowstyle="-|>", mutation_scale=16, color=colour, lw=1.6)
    )


def main() -> None:
    """Write ``docs/symmetries.png``."""
    space = WeightSpace.from_module(Small(), torch.randn(2, 3, 8, 8))
    figure, axes = plt.subplots(figsize=(10, 4.4))
    for group in space.groups:
        draw_group(axes, group)
    draw_block(axes, (0.7, 0.0), (2.5, 0.0), 0.0, GREY)
    draw_block(axes, (3.1, 0.4), (5.1, 2.4), -0.3, BEFORE)
    draw_block(axes, (5.9, 2.1), (4.2, 0.4), -0.3, AFTER)
    draw_block(axes, (4.3, 0.0), (8.9, 0.0), 0.0, GREY)
    notes = [
        (1.6, 0.14, "conv1", GREY, "center"),
        (6.6, 0.14, "head", GREY, "center"),
        (3.1, 1.75, "conv2", BEFORE, "right"),
        (5.75, 1.05, "conv3", AFTER, "left"),
        (3.4, -0.85, "the residual stream: conv1 and conv3 enter it,\nconv2 and the head leave it", GREY, "center"),
        (7.0, 2.75, "before batch norm: rows of conv2, bn2's running statistics", BEFORE, "left"),
        (7.0, 2.4, "after batch norm: bn2's weight and bias, columns of conv3", AFTER, "left"),
        (7.0, 2.05, "one permutation moves all of them", GREY, "left"),
    ]
    for x, y, text, colour, side in notes:
        axes.text(x, y, text, color=colour, ha=side, va="center" if "\n" not in text else "top")
    axes.set(xlim=(-0.9, 13.4), ylim=(-1.5, 3.2))
    axes.set_axis_off()
    figure.savefig(Path(__file__).parents[1] / "symmetries.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
