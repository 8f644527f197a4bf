"""Self-contained HTML pages, charts and picture grids.

A page is one file: no script, no font, no picture from elsewhere; it opens from a disk without a network,
light or dark, wide or narrow. `html` escapes, `layout` arranges, `charts` draws, `pictures` shows images.
"""
