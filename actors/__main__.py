"""How are durable objects looked after from a terminal? `python -m actors --help`."""

from __future__ import annotations

import sys

from actors.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
