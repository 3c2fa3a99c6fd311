"""Where a word looks, and which words look at a place, with or without a trained head.

words.py        a text -> its words, and the tokens of each
reading.py      image + text -> the maps of every word, a portion of them in one forward
heads.py        which attention heads of a model localize, found on drawn scenes
maps.py         the maps of all words; sinks
regions.py      a point, a box or a mask -> weights of the cells
make.py         `explain` joins these to an `Explanation` (explanation.py)
drawing.py, files.py, page.py   overlays, arrays, one HTML page
"""
