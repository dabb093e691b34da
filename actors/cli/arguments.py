"""What may be typed after `python -m actors`?

An object is written as lists show it, `Class/tenant:name`, with what is not a plain character percent-encoded: so it
can be copied from there, and holds nothing that a terminal or a shell would take for its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from actors.runtime.operations import PAGE_DEFAULT
from actors.runtime.query import ROWS_DEFAULT, TIMEOUT_DEFAULT_S

DEFAULT_APP = "serve_app:CLASSES"
DEFAULT_ADDRESS = "auto"

_EXAMPLES = """\
examples:
  python -m actors list ChatSession --tenant acme --prefix s
  python -m actors query ChatSession/acme:s1 "SELECT count(*) FROM message"
  python -m actors export ChatSession/acme:s1 s1.sqlite --data-dir data
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line. `--json`, `--address`, `--data-dir` and `--app` may stand before or after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--json", action="store_true", help="one JSON object a line")
    where = common.add_mutually_exclusive_group()
    where.add_argument("--address", help=f"of the Ray cluster whose objects are meant (default: {DEFAULT_ADDRESS})")
    where.add_argument("--data-dir", type=Path, help="of a service that does not run, instead of a cluster")
    common.add_argument(
        "--app", metavar="MODULE:NAME", help=f"with --data-dir: where its classes are (default: {DEFAULT_APP})"
    )
    main = argparse.ArgumentParser(
        prog="python -m actors",
        description="Looks after durable objects.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help_text: str, *, of_object: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(
            name, help=help_text, description=help_text, parents=[common], argument_default=None, allow_abbrev=False
        )
        if of_object:
            added.add_argument("object", metavar="CLASS/TENANT:NAME")
        return added

    listing = command("list", "lists objects without waking them", of_object=False)
    listing.add_argument("class_name", nargs="?", metavar="CLASS")
    listing.add_argument("--prefix", default="", help="what names begin with")
    listing.add_argument("--all", action="store_true", help="page after page, to the end")
    quarantine = command("quarantine", "lists objects that are kept from running", of_object=False)
    for lists in (listing, quarantine):
        lists.add_argument("--tenant")
        lists.add_argument("--limit", type=int, default=PAGE_DEFAULT, help="objects at most (default: %(default)s)")
        lists.add_argument("--after", metavar="OBJECT", help="where the page before ended")
    command("describe", "tells of one object without waking it")
    query = command("query", "runs one SQL statement that reads")
    query.add_argument("sql")
    query.add_argument("binds", nargs="*", metavar="BIND", help="values of its `?`, as text")
    query.add_argument("--rows", type=int, default=ROWS_DEFAULT, help="rows at most (default: %(default)s)")
    query.add_argument(
        "--timeout", type=float, default=TIMEOUT_DEFAULT_S, metavar="SECONDS", help="(default: %(default)s)"
    )
    evict = command("evict", "has an object leave memory now")
    evict.add_argument("--force", action="store_true", help="ends the calls that run or wait, even if they never would")
    command("alarm", "runs an object's alarm now")
    export = command("export", "writes an object's database into a new file")
    import_ = command("import", "makes an exported database an object")
    for moves in (export, import_):
        moves.add_argument("file", type=Path)
    import_.add_argument("--replace", action="store_true", help="in place of the object that is there")
    delete = command("delete", "removes an object and all that it stores")
    delete.add_argument("--yes", action="store_true", required=True, help="needed: it can't be undone")
    command("release", "ends an object's quarantine")
    migrate = command("migrate", "brings all objects up to the code's schema", of_object=False)
    migrate.add_argument("class_name", nargs="?", metavar="CLASS")
    return main
