"""One decode of an image gives its Facts."""
