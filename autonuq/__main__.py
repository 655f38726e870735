"""`python -m autonuq` is the command."""

from autonuq.cli import main

if __name__ == "__main__":
    main()
