"""The functions of the public API, which `evilspectra` exports; the command line calls them too."""
