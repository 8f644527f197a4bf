"""Train, generate and export."""
