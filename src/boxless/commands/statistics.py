"""`boxless statistics`: the colours of an image set, as keys of a recipe."""

from dataclasses import dataclass

from boxless.files import Places, as_text


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of an image set's colours.

    Attributes:
        mean: mean of red, green and blue in 0..1.
        std: standard deviation of red, green and blue in 0..1, over all pixels of all images.
        images: images that were read.
        skipped: (path, reason) of the images that could not be read.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: int
    skipped: list[tuple[str, str]]

    def __str__(self) -> str:
        from boxless.data.images import skipped_report

        mean, std = (",".join(f"{value:.3f}" for value in values) for values in (self.mean, self.std))
        lines = [f"{self.images} images: mean {mean}, standard deviation {std} (red, green, blue in 0..1)"]
        if self.skipped:
            lines.append(skipped_report(self.skipped))
        return "\n".join([*lines, f"--trunk.mean {mean} --trunk.std {std}"])


def statistics(data: Places, workers: int | None = None, quiet: bool = False) -> Statistics:
    """Measure the mean and standard deviation of an image set's colours, to normalise with.

    The last line printed holds the keys for `boxless pretrain`; fine-tuning takes them over with the weights. The
    default is ImageNet's, which suits photographs. Every image has the same weight, whatever its size.

    Args:
        data: Images: a folder, a list file, a labelled data set (labels are not used), or several of these.
        workers: Threads that decode; default one per core.
        quiet: Print nothing.

    Raises:
        UserError: for data that cannot be used.
    """
    from boxless.data.images import dark_report
    from boxless.data.open import index_images
    from boxless.data.statistics import colour_statistics
    from boxless.errors import UserError

    data = as_text(data)
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: expected 1 or more")
    index = index_images(data)
    mean, std, skipped = colour_statistics(index, workers)
    if len(skipped) == len(index):
        raise UserError(f"{skipped[0][0]}: {skipped[0][1]}; so are all {len(index)} images: check the data")
    (r, g, b), (r_std, g_std, b_std) = mean.tolist(), std.tolist()
    result = Statistics((r, g, b), (r_std, g_std, b_std), len(index) - len(skipped), skipped)
    if not quiet:
        if line := dark_report([index.path(row) for row in range(0, len(index), 1 + len(index) // 16)]):
            print(line)
        print(result)
    return result
