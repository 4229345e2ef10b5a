"""`python -m swiftmask`, the same as the `swiftmask` command."""

from swiftmask.cli import main

if __name__ == "__main__":
    main()
