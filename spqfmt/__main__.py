"""`python -m spqfmt`: the command line, where `spqfmt` itself is not on the path."""

from spqfmt.cli.main import main

if __name__ == "__main__":
    main()
