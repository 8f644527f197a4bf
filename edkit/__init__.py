"""edkit: gather, clean, caption and balance datasets, and fine-tune Stable Diffusion on them.

`edkit.api` holds every command as a plain function; `edkit.cli` is the same on the command line.
"""

__version__ = "0.1.0"
