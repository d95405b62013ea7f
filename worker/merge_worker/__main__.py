# ruff: noqa: UP031, UP036
"""Entry of `python -m merge_worker` and of the zip: check the interpreter, run the command line.

Parsed by old interpreters too, so nothing here may be newer than Python 2.7.
"""

import sys

if sys.version_info < (3, 10):
    sys.stderr.write(
        "merge-worker needs Python 3.10 or newer; this is %s (%s)\n"
        % (sys.version.split()[0], sys.executable)
    )
    sys.exit(2)

if __name__ == "__main__":
    from merge_worker.cli import entry

    entry()
