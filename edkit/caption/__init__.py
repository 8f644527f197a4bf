"""What an image is called, and where that stands."""
