"""Boxes without labels: selective search, a grid, random boxes, a COCO file; and the table that holds them."""
