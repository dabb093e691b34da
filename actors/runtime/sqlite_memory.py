"""How much memory does an open database take?

SQLite sets memory aside for each connection, as suits a program that has a few: two thirds of what an open object would
take. A process that opens thousands says here that it needs none of that, before it opens any.
"""

from __future__ import annotations

import logging

from actors.runtime import sqlite_library

logger = logging.getLogger("mobula.objects")

_CONFIG_PAGECACHE = 7
_CONFIG_LOOKASIDE = 13
_OK = 0


def take_little() -> bool:
    """For the whole process, which must have no database open. Says whether it could be done; else nothing changes."""
    try:
        library = sqlite_library.load()
        shutdown, configure, initialize = library.sqlite3_shutdown, library.sqlite3_config, library.sqlite3_initialize
    except (ImportError, OSError, AttributeError) as error:
        logger.info("open objects take more memory than they need: %s", error)
        return False
    if shutdown() != _OK:
        return False
    # No small allocations of each connection's own, and pages of its cache one by one (a negative number: of KiB).
    done = configure(_CONFIG_LOOKASIDE, 0, 0) == _OK and configure(_CONFIG_PAGECACHE, None, 0, -1) == _OK
    return bool(initialize() == _OK and done)
