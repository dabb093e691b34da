"""What does a durable object promise? Each test here is one promise; its name says which.

| file | subject |
|---|---|
| `test_turns` | calls: their order, what they share, what comes back, what an author's mistake does not do to others |
| `test_transactions` | what is kept together and undone together: turns, steps between awaits, nested transactions |
| `test_gates` | no turn starts while storage is in doubt; no reply or call leaves before what it tells of is durable |
| `test_alarms` | when a handler is called |
| `test_alarm_handlers` | how often a handler that fails is tried, and what does not count |
| `test_alarm_crashes` | what a crash at any moment leaves of an alarm |
| `test_exactly_once` | how often a call is done that was sent twice, or whose reply was lost |
| `test_calls` | objects that call each other: cycles, deadlines, errors, tenants |
| `test_interleaving` | turns that run beside others, `block_concurrency_while`, starts that wait |
| `test_storage` | SQL and what of it is refused, values by key, deletion |
| `test_naming` | names and the objects that they stand for |
| `test_overload` | limits of what may wait, slices, turns that hold up a host |

What holds everywhere, in process and on Ray, stands in classes whose names don't begin with `Test`: `Alarms`, `Calls`,
... In process their tests run in the same file, twice: on objects that stay resident, and on objects that hibernate
after each turn. On Ray they run in `test_on_ray`. The other classes hold gates, turn clocks, spoil commits and lose
hosts at chosen moments, which takes `actors.testing.Lab`. What killed processes leave is tested in `tests/fault`, and
any sequence of all this against a plain model in `tests/property`.
"""

from __future__ import annotations
