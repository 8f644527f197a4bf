"""How often each folder is picked in an epoch."""
