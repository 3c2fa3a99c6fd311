"""A benchmark folder as a page, as tables, and compared with another.

cells.py    results on disk -> columns
scores.py   columns -> scores with intervals      slices.py   the same by size, words, ...
compare.py  two cells -> differences
charts.py, gallery.py, peers.py -> page.py -> one HTML file      formats.py -> the other files
"""
