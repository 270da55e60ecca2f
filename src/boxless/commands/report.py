"""`boxless report`."""

from dataclasses import dataclass
from pathlib import Path

from boxless.files import Place, Places, as_text


@dataclass(frozen=True)
class ReportResult:
    """A page that was written.

    Attributes:
        path: the HTML file.
    """

    path: Path

    def __str__(self) -> str:
        return f"report: {self.path}"


def report(
    run: Places,
    out: Place | None = None,
    watch: bool = False,
    port: int = 8765,
    quiet: bool = False,
) -> ReportResult:
    """Write one HTML page about runs: what they did, what they cost, whether they are healthy, and what to do next.

    The page has curves to zoom, the run's pictures (boxless figures), its detections to look through (boxless evaluate)
    and, of several runs, what differs and who scores how much. It opens without a network and sends nothing.

    Args:
        run: Folders of pretrain, finetune, evaluate, compare or demo, also unfinished. Several are set side by side.
        out: The file; by default report.html in the run's folder, or of several runs in the current one.
        watch: Serve the page at 127.0.0.1, to this machine alone, and renew it while a run lasts; ends with Ctrl-C.
        port: Port of the served page; 0 takes any free one.
        quiet: Print nothing.

    Returns:
        Where the page is.

    Raises:
        UserError: If the caller can fix the cause.
    """
    from boxless.report.build import write_report

    run = as_text(run)
    runs = [run] if isinstance(run, str) else list(run)
    path = write_report(runs, Path(out) if out else None)
    result = ReportResult(path)
    if not quiet:
        print(result)
    if watch:
        from boxless.report.serve import serve

        serve(runs, port, quiet)
    return result
