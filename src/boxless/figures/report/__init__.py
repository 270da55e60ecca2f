"""One HTML page that tells what runs did: it reads their folders, needs no network, and sends nothing.

The charts are a hundred lines of our own (charts.js): a charting library is 1 to 5 MB in every page, none of the small
ones is a Python package, and what is needed is lines, a zoom and the values under the pointer.
"""
