"""From tables and archives to ground-truth images on disk."""
