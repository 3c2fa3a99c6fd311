"""A benchmark folder as a page, as tables, and compared with another.

measurements.py  results on disk -> columns
scores.py        columns -> scores with intervals, of all rows and by size, words, ...
compare.py       two measurements -> differences
charts.py, gallery.py, peers.py, formats.py -> page.py -> one HTML file and the other formats
"""
