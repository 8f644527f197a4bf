"""Self-contained HTML pages, charts and picture grids."""
