"""edkit: prepare, curate and train datasets for Stable Diffusion, and prove what the model kept.

`edkit.api` holds every command as a plain function; `edkit.cli` is the same on the command line.
"""

__version__ = "0.1.0"
