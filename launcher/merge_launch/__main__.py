"""Run `python -m merge_launch`."""

from .cli import main

if __name__ == "__main__":
    main()
