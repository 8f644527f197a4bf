"""The small model that ships with edkit, the world it knows, and the reader that tells what a picture shows."""
