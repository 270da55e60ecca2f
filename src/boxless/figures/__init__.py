"""Functions that return matplotlib figures of runs, scores, detections and views."""
