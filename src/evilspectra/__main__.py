"""The command line as `python -m evilspectra`."""

from evilspectra.cli.main import main

if __name__ == "__main__":
    main()
