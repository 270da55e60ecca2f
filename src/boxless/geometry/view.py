"""A view of a source image that remembers where each of its pixels came from."""

from typing import NamedTuple

import torch
from torch import Tensor

from boxless.geometry.affine import compose, crop_and_resize, invert, mirror, transform_points
from boxless.geometry.boxes import area, clip, own_rows, transform_boxes


class View(NamedTuple):
    """Views of a batch of images, all of one size.

    Attributes:
        image: (B, 3, H, W), uint8 as cropped or float as the network sees it.
        from_source: (B, 2, 3), source pixels -> view pixels; always on the CPU. These are few numbers, and
            decisions that depend on them (which boxes a view shows) would otherwise wait for the device.
    """

    image: Tensor
    from_source: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.image.shape[-2], self.image.shape[-1]

    def to(self, device: torch.device | str) -> "View":
        """The same views with their images on another device."""
        return self.with_image(self.image.to(device, non_blocking=True))

    def mirrored(self, chosen: Tensor) -> "View":
        """The same views, flipped left and right if `chosen` (B,), on the CPU, is true."""
        there = chosen.to(self.image.device, non_blocking=True)[:, None, None, None]
        image = torch.where(there, self.image.flip(-1), self.image)
        return View(image, compose(mirror(self.size[1], chosen), self.from_source))

    def resized(self, size: int) -> "View":
        """The same views as size x size images (bilinear, anti-aliased)."""
        height, width = self.size
        image = self.image.float()
        image = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
        if not self.image.is_floating_point():
            image = image.round().clamp(0, 255).to(self.image.dtype)
        whole = self.from_source.new_tensor([[0, 0, width, height]]).expand(len(image), 4)
        return View(image, compose(crop_and_resize(whole, size, size), self.from_source))

    def with_image(self, image: Tensor) -> "View":
        """The same views with other pixel values (B, 3, H, W)."""
        return View(image, self.from_source)

    def boxes(self, source_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Map source boxes into these views.

        Args:
            source_boxes: (B, K, 4), source px.

        Returns:
            (B, K, 4) in view px, cut to the view, and (B, K) the fraction of each box's area that the view shows, 0..1
            (0 for boxes without area).
        """
        height, width = self.size
        whole = transform_boxes(self.from_source, source_boxes)
        visible = clip(whole, width, height)
        return visible, area(visible) / area(whole).clamp(min=1e-6)

    def source_boxes(self, boxes: Tensor) -> Tensor:
        """Map boxes (B, K, 4) of these views, px, back into their sources, (B, K, 4), source px."""
        return transform_boxes(invert(self.from_source), boxes)

    def windows(self) -> Tensor:
        """The part of its source that each view shows, (B, 4), xyxy in source px."""
        height, width = self.size
        whole = self.from_source.new_tensor([[[0, 0, width, height]]]).expand(len(self.from_source), 1, 4)
        return self.source_boxes(whole)[:, 0]

    def cell_centres(self, rows: int, columns: int) -> Tensor:
        """Centres of the cells of a rows x columns feature map, (B, rows, columns, 2) in source px, xy."""
        height, width = self.size
        y = (torch.arange(rows) + 0.5) * (height / rows)
        x = (torch.arange(columns) + 0.5) * (width / columns)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).expand(len(self.from_source), -1, -1, -1)
        return transform_points(invert(self.from_source), grid)

    def patches(self, grid: int, size: int, generator: torch.Generator | None = None) -> "View":
        """Cut a random patch from each cell of a regular grid, without resizing (PIRL's jigsaw, DetCo).

        Args:
            grid: rows and columns of cells, whose edges are rounded down to whole px.
            size: side of the square patches, px; at most a cell's, rounded down.
            generator: on the CPU, so that every device draws the same.

        Returns:
            B * grid^2 views: image by image, each row by row.
        """
        count, (height, width), device = len(self.image), self.size, self.image.device
        corner = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)) * torch.tensor([height, width]) // grid
        room = torch.tensor([height // grid - size + 1, width // grid - size + 1])
        offset = own_rows(count, lambda rows: torch.rand(rows, grid**2, 2, generator=generator))
        offset = (offset * room).long().clamp(max=room - 1)
        corner = (corner + offset).flatten(0, 1)  # (B * grid^2, 2), top and left
        image_of = torch.arange(count).repeat_interleave(grid**2)
        y, x = (corner[:, axis, None] + torch.arange(size) for axis in (0, 1))
        place = image_of[:, None, None], y[:, :, None], x[:, None, :]
        pixels = self.image.permute(0, 2, 3, 1)[tuple(at.to(device, non_blocking=True) for at in place)]
        window = torch.cat([corner, corner + size], 1)[:, [1, 0, 3, 2]].to(self.from_source.dtype)
        cut = compose(crop_and_resize(window, size, size), self.from_source[image_of])
        return View(pixels.permute(0, 3, 1, 2), cut)
