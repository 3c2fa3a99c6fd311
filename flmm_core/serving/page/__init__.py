"""The page of `flmm demo`: `static/` is what the browser loads, the rest is what it asks."""
