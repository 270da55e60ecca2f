"""Functions that return matplotlib figures of runs, scores, detections and views.

What a page that shows them can rely on: a figure of a run is RUN/figures/NAME.png and NAME.svg, written by
`style.save`, and RUN/figures/captions.json has its alt text by the name of the PNG file, {"views.png": "..."};
`style.read_captions(folder)` reads it. NAME is the kind that `boxless figures` has drawn (its --help lists them); where
a kind draws several figures, the others are NAME-WHAT. A file without a caption belongs to something else.
"""
