"""`python -m edkit` is the `edkit` command."""

from edkit.cli.app import main

if __name__ == "__main__":
    main()
