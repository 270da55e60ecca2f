"""`boxless figures`."""

from dataclasses import dataclass
from pathlib import Path

from boxless.files import Places, as_text


@dataclass(frozen=True)
class FiguresResult:
    """The figures that were drawn.

    Attributes:
        path: folder of the figures.
        written: PNG file -> what it shows; an SVG file lies beside each.
        left_out: why other kinds were not drawn, a line each.
    """

    path: Path
    written: dict[str, str]
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        number = f"{len(self.written)} figure{'' if len(self.written) == 1 else 's'}"
        lines = [f"{number}, as PNG and SVG, in {self.path}:"]
        lines += [f"  {Path(file).name}: {caption}" for file, caption in self.written.items()]
        if self.left_out:
            lines += ["not drawn:", *(f"  {reason}" for reason in self.left_out)]
        return "\n".join(lines)


def figures(
    run: Places,
    data: Places | None = None,
    kinds: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> FiguresResult:
    """Draw figures of a run like those in the papers: PNG and SVG files in the run's folder figures/.

    Of any run: curves (loss, rates, health). Of a pretraining: views (as the network sees them), proposals, maps (of
    each pyramid level), pca (features as colours), attention, correspondence (of two views, and under flip and colour),
    correlation (of two views' embeddings), emd (Self-EMD's plan). Of a detector: maps, pca, attention, detections (by
    what became of them), precision-recall, confusion, gain (by class, over a reference). Of a comparison:
    label-efficiency, gain. captions.json says in words what each shows.

    Args:
        run: Folder of a pretraining, a fine-tuning or a comparison. Further folders are shown beside the first one in
            pca, attention and correspondence (random weights if there are none), and are the reference in gain.
        data: Images, or labels for figures that compare with labels (COCO JSON, a Pascal VOC folder, a YOLO data.yaml;
            :split picks a split). Labels show the recall of proposals too.
        kinds: Figures to draw, separated by commas; by default all that run and data allow.
        seed: Seed for choosing the images.
        quiet: Print nothing.

    Returns:
        The files, and what each shows.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from boxless.errors import UserError
    from boxless.figures.kinds import FigureContext, draw_figures

    run, data = as_text(run), as_text(data)
    if seed < 0:
        raise UserError(f"seed={seed}: expected 0 or more")
    runs = (run,) if isinstance(run, str) else tuple(run)
    context = FigureContext(runs, data, seed, quiet)
    names = [word.strip() for word in (kinds or "").split(",") if word.strip()]
    written, left_out = draw_figures(names, context)
    result = FiguresResult(context.folder / "figures", written, tuple(left_out))
    if not quiet:
        print(result)
    return result
