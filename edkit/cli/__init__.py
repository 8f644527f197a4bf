"""The command line: parse, one call into a wing, render."""
