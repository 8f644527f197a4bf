"""Find what is broken, doubled or unwanted, and set it aside."""
