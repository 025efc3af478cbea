"""`python -m raymerge`."""

from raymerge.cli import run

if __name__ == "__main__":
    run()
